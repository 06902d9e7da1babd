"""Loading safely: what could carry code or is damaged is refused by name, and a cut network costs no time."""

import contextlib
import json
import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sftbench.cli import main
from sftbench.errors import BadInput, RunFailed
from sftbench.models.checkpoint import load_stage
from sftbench.models.loading import load_model, load_model_config, load_tokenizer, resolve_revision
from sftbench.recipes.facts import Facts
from sftbench.recipes.pretraining_rates import add_pretraining
from sftbench.recipes.recipe import Recipe, override
from sftbench.runs.events import append_event, read_events
from sftbench.runs.folder import read_json, read_result, store_folder
from sftbench.runs.stage_store import file_sha256
from sftbench.sources.names import read_model_config
from sftbench.training import chain
from sftbench.training.chain import run_chain
from sftbench.training.prepare import prepare_recipe
from tests.conftest import bad_input, run_failed, small_rows

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(make_model, tmp_path):
    """A copy of the small model's folder, to be damaged."""
    return Path(shutil.copytree(make_model(), tmp_path / "model"))


class Evil:
    """What a pickle may do when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def weights(change):
    """A damage that changes the tensors of a folder's weights by name."""
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return damage


def bytes_of(name: str, change):
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
    return damage


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil(folder.parent / "executed")}, folder / "pytorch_model.bin")


def own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config",
                                                  "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder.parent / 'executed')!r}, 'w')\n")


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {
        "model.embed_tokens.weight": names[0], "model.norm.weight": names[1]}}))


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


NORM = "model.norm.weight"


@pytest.mark.parametrize(("damage", "file", "named"), [
    (bytes_of("model.safetensors", lambda data: data[:-100]), "model.safetensors", None),
    (bytes_of("model.safetensors", lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:]),
     "model.safetensors", None),
    (weights(lambda tensors: tensors.pop(NORM)), "", f"1 .*{NORM}"),
    (weights(lambda tensors: tensors[NORM].fill_(float("nan"))), "", f"1 .*{NORM}"),
    (weights(lambda tensors: tensors.update({NORM: torch.zeros(3)})), "", None),
    (missing_shard, "", "model-00002-of-00002.safetensors"),
    (only_a_pickle, "", "pytorch_model.bin"),
    (own_code, "config.json", "auto_map"),
    (bytes_of("config.json", lambda data: data[:50]), "config.json", None),
    (bytes_of("tokenizer.json", lambda data: data[:50]), "", "tokenizer"),
    (no_tokenizer, "", "tokenizer"),
    (lambda folder: (folder / "adapter_config.json").write_text("{}"), "", "adapter_config.json"),
])
def test_what_is_damaged_or_could_carry_code_is_refused_by_name(folder, damage, file, named):
    damage(folder)
    with bad_input("model", folder / file, match=named) as refused:
        load_model_config(str(folder))  # in the order in which a run reads them
        load_tokenizer(str(folder))
        load_model(str(folder))
    assert str(folder) in str(refused.value)
    assert not (folder.parent / "executed").exists()


def test_code_beside_a_known_family_is_not_run(folder):
    own_code(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen3"}))
    assert type(load_model(str(folder))).__name__ == "Qwen3ForCausalLM"
    assert not (folder.parent / "executed").exists()


@pytest.fixture
def hub(make_model, tmp_path, monkeypatch):
    """A hub's cache with one model in it, and a hub that takes connections and never says a word."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--me--mine" / "snapshots" / COMMIT
    (cache / "models--me--mine" / "refs").mkdir(parents=True)
    (cache / "models--me--mine" / "refs" / "main").write_text(COMMIT)
    shutil.copytree(make_model(), snapshot)
    blobs = cache / "models--me--mine" / "blobs"
    blobs.mkdir()
    digest = file_sha256(snapshot / "model.safetensors")
    (snapshot / "model.safetensors").rename(blobs / digest)
    (snapshot / "model.safetensors").symlink_to(blobs / digest)
    listening = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT",
                        f"http://127.0.0.1:{listening.getsockname()[1]}")
    listening.setblocking(False)
    yield SimpleNamespace(weights=blobs / digest, listening=listening)
    listening.close()


def connections(listening: socket.socket) -> int:
    """How often the silent hub was called since the last time."""
    calls = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listening.accept()[0].close()
            calls += 1
    return calls


def test_a_cached_model_is_used_without_the_network_and_pinned(hub, small_files, tmp_path):
    ready = prepare_recipe(override(Recipe(), mode="2", model="me/mine", max_steps=1, **small_files))
    assert connections(hub.listening) == 0
    assert ready.revision == ready.recipe.model_revision == COMMIT
    assert load_model("me/mine", COMMIT).num_parameters() == ready.facts.parameters
    hub.weights.chmod(0o644)
    hub.weights.write_bytes(hub.weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(BadInput, match=f"--revision {COMMIT}",
                       check=lambda error: Path(error.where).name == "model.safetensors"):
        resolve_revision("me/mine")


@pytest.mark.parametrize(("revision", "command"), [
    (None, "hf download me/other"), ("v2", "hf download me/other --revision v2")])
def test_a_model_that_is_not_cached_fails_soon_with_the_command_that_fetches_it(hub, revision, command,
                                                                                capsys, monkeypatch):
    for silent in (True, False):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", not silent)
        words = ["run", "1", "-p", "model", "me/other"]
        words += ["-p", "model_revision", revision] if revision else []
        assert main(words) == 2
        assert connections(hub.listening) <= 1  # one try, and no further one after it was not answered
        assert capsys.readouterr().err.strip().endswith(command)


@pytest.mark.slow
def test_a_bit_flipped_in_the_store_is_found_when_the_stage_is_loaded(make_model, small_files, tmp_path):
    run = run_chain(override(Recipe(), mode="1", model=make_model(), max_steps=1, probe_rows=2,
                             yardstick=False, output_dir=str(tmp_path / "run"), **small_files))
    path = store_folder(run) / read_result(run)["stages"][0]["key"] / "model" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    with run_failed("damaged", match=str(path)):
        load_stage(run)


@pytest.mark.slow
def test_the_environments_token_is_written_nowhere(make_model, small_files, tmp_path, monkeypatch):
    token = "hf_" + "Ab3" * 10
    monkeypatch.setenv("HF_TOKEN", token)
    recipe = override(Recipe(), mode="1", model=make_model(), max_steps=1, probe_rows=2, yardstick=False,
                      output_dir=str(tmp_path / "run"), **small_files)
    real = chain.train_stage

    def tell(*args, **more):
        raise RunFailed(f"401 for the header Bearer {token}")
    monkeypatch.setattr(chain, "train_stage", tell)
    with pytest.raises(RunFailed):
        run_chain(recipe)
    assert "Bearer hf_***" in (tmp_path / "run" / "events.jsonl").read_text()
    monkeypatch.setattr(chain, "train_stage", real)
    run_chain(recipe)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if token.encode() in path.read_bytes()]


def test_what_looks_like_a_token_is_masked_in_messages_never_in_a_recipe(make_model, small_files, tmp_path):
    folder = tmp_path / ("hf_" + "Ab3" * 10)
    shutil.copytree(make_model(), folder)
    recipe = override(Recipe(), mode="1", model=str(folder), max_steps=1, probe_rows=2, yardstick=False,
                      output_dir=str(tmp_path / "run"), **small_files)
    assert run_chain(recipe) == run_chain(recipe)  # the stored recipe is the given one, so it may go on
    assert read_json(tmp_path / "run", "recipe.json")["recipe"]["model"] == str(folder)
    append_event(tmp_path / "run", {"stage": "start", "step": 0, "message": f"401 for {folder.name}"})
    assert read_events(tmp_path / "run")[-1]["message"] == "401 for hf_***"


@pytest.mark.parametrize("rate", ["3e-4", -1.0, float("inf"), 3, None, [1]])
def test_a_card_states_a_positive_rate_or_nothing(make_model, tmp_path, rate):
    folder = tmp_path / "stranger"
    shutil.copytree(make_model(), folder)
    config = json.loads((folder / "config.json").read_text())
    card = {"pretraining_learning_rate": rate, "parameters": 7, "rows": {"domain_tasks": 1}, "bf16": True}
    (folder / "config.json").write_text(json.dumps(config | {"sftbench": card}))
    facts = add_pretraining(Facts(), read_model_config(str(folder)))
    assert facts.pretraining_learning_rate is None and facts.parameters is None
    ready = prepare_recipe(override(Recipe(), mode="1", model=str(folder),
                                    domain_tasks=small_tasks(tmp_path)))
    assert ready.facts.pretraining_learning_rate is None
    assert ready.facts.parameters == load_model(str(folder)).num_parameters() > 7
    assert ready.facts.rows["domain_tasks"] > 1 and ready.facts.origins["parameters"] == "measured"


def small_tasks(folder) -> str:
    """A file with a few tasks."""
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in small_rows("domain_tasks")))
    return str(path)
