"""The embedded world, and the weights that are shipped with it."""

import hashlib
import json
import math
from itertools import islice
from pathlib import Path

import papermill
import pytest
import torch

from sftbench.evaluation.rating import score_probe
from sftbench.models.loading import load_model, load_model_config, load_tokenizer
from sftbench.pocket import FOLDERS
from sftbench.pocket.build import LEARNING_RATE, TOKENS, WEAK_TOKENS, facts_known, make_tokenizer, save
from sftbench.pocket.world import (
    PRODUCTS,
    ROLES,
    SPLITS,
    people,
    pretraining_text,
    products,
    world_rows,
    write_files,
)
from sftbench.runs.stage_store import file_sha256

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "build_pocket.ipynb"
ROWS_SHA256 = "ac1dc55f3449162f16d6a5423164a2b154be16100241b7f58bbd4de1882aa383"
EVERY_ROLE = [(role, split) for role in ROLES for split in SPLITS]


def task_key(row):
    """What is asked: system prompt and user input."""
    return tuple(message["content"] for message in row["messages"][:-1])


def answer(row):
    return row["messages"][-1]["content"]


@pytest.mark.parametrize("related", [True, False])
def test_same_seed_gives_the_same_bytes(tmp_path, related):
    first = write_files(tmp_path / "a", seed=3, related=related)
    second = write_files(tmp_path / "b", seed=3, related=related)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len(first) == 8 and all(path.stat().st_size > 1000 for path in first)


def test_files_hold_the_rows(tmp_path):
    for path, (role, split) in zip(write_files(tmp_path, seed=1), EVERY_ROLE, strict=True):
        assert path.name == (f"{role}.jsonl" if split == "train" else f"{role}_probe.jsonl")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert rows == world_rows(role, split, seed=1)


def test_seed_changes_the_domain_only():
    for role, split in EVERY_ROLE:
        same = world_rows(role, split, seed=0) == world_rows(role, split, seed=1)
        assert same == role.startswith("general")
    assert set(products(0)) != set(products(1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("related", [True, False])
def test_no_probe_row_and_no_probe_question_is_trained(seed, related):
    for role in ROLES:
        train, probe = (world_rows(role, split, seed, related) for split in SPLITS)
        keys = (lambda row: row["text"]) if role.endswith("text") else task_key
        assert not {keys(row) for row in train} & {keys(row) for row in probe}
        assert len({keys(row) for row in probe}) == len(probe)


@pytest.mark.parametrize("seed", range(4))
def test_no_question_about_a_probed_product_or_person_is_trained(seed):
    probed = {name for name in products(seed)
              if any(name in task_key(row)[-1] for row in world_rows("domain_tasks", "probe", seed))}
    asked = {name for name in people()
             if any(name in task_key(row)[-1].split() for row in world_rows("general_tasks", "probe"))}
    assert len(probed) == PRODUCTS - PRODUCTS * 2 // 3 and asked
    for row in world_rows("domain_tasks", "train", seed) + world_rows("general_tasks", "train"):
        words = set(task_key(row)[-1].replace("?", " ").replace(".", " ").split())
        assert not words & (probed | asked)
    told = " ".join(row["text"] for row in world_rows("domain_text", "train", seed))
    assert all(name in told for name in probed), "the handbook tells about every product"


def test_pretraining_text_holds_no_product_and_no_probe():
    texts = list(islice(pretraining_text(), 20_000))
    assert not set(texts) & {row["text"] for row in world_rows("general_text", "probe")}
    words = {word.strip(".,?:") for text in texts for word in text.split()}
    assert not words & (set(products(0)) - set(people()))
    probed = {task_key(row)[-1] for row in world_rows("general_tasks", "probe")}
    assert not [text for text in texts if "?" in text and any(question in text for question in probed)]


def test_the_world_is_the_one_that_the_shipped_models_learnt():
    rows = [world_rows(role, split, 0, related) for role, split in EVERY_ROLE for related in (True, False)]
    text = json.dumps([rows, list(islice(pretraining_text(), 1000))])
    assert hashlib.sha256(text.encode()).hexdigest() == ROWS_SHA256, "another world needs other models"


def test_probe_sizes():
    for role in ROLES:
        assert 100 <= len(world_rows(role, "probe")) <= 250


@pytest.mark.parametrize("related", [True, False])
def test_three_task_types_share_their_user_inputs(related):
    wanted = {}
    for row in world_rows("domain_tasks", "train", related=related):
        system, user = task_key(row)
        wanted.setdefault(user, set()).add(answer(row))
    assert all(len(answers) == 3 for answers in wanted.values()), "the system prompt alone decides"


def test_related_tasks_have_the_form_of_general_tasks():
    def forms(rows):
        return {task_key(row)[-1].rsplit(" ", 1)[0] for row in rows if len(row["messages"]) == 3}

    general = forms(world_rows("general_tasks"))
    for related in (True, False):
        domain = forms(world_rows("domain_tasks", related=related))
        assert (domain <= general) == related


def test_unknown_role_is_refused():
    with pytest.raises(KeyError, match="domain_texts"):
        world_rows("domain_texts")


# The shipped weights

def load(name):
    return load_model(name), load_tokenizer(name)


def scores(name, role, rows=60):
    model, tokenizer = load(name)
    return score_probe(model, tokenizer, world_rows(role, "probe")[:rows], 128, max_new_tokens=16)


def test_hashes_cover_all_shipped_files():
    root = FOLDERS["pocket"].parent
    hashes = json.loads((root / "sha256.json").read_text())
    files = [path for folder in FOLDERS.values() for path in folder.iterdir()]
    assert hashes == {path.relative_to(root).as_posix(): file_sha256(path) for path in files}


def test_saving_a_shipped_model_again_writes_the_same_files(tmp_path):
    save(load_model("pocket"), make_tokenizer(), tmp_path / "base", TOKENS, "Nothing else was done to it.")
    for path in FOLDERS["pocket"].iterdir():
        assert (tmp_path / "base" / path.name).read_bytes() == path.read_bytes(), path.name


def test_base_and_chat_are_small():
    folders = FOLDERS["pocket"], FOLDERS["pocket-chat"]
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) < 8e6


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_is_a_complete_model(name):
    folder = FOLDERS[name]
    model, tokenizer = load(name)
    assert load_model_config(name).sftbench["pretraining_learning_rate"] == LEARNING_RATE
    assert load_model_config(name).sftbench["pretraining_tokens"] > 0
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert not model.generation_config.do_sample
    assert model.config.hidden_size % 64 == 0 and model.config.max_position_embeddings == 512
    assert "apache-2.0" in (folder / "README.md").read_text()
    assert {child.dtype for child in model.parameters()} == {torch.float32}


def test_any_text_survives_the_tokenizer():
    tokenizer = load_tokenizer("pocket")
    for text in ("Straße 42, naïve façade\n\ttabs", "日本語 🙂", "".join(map(chr, range(32, 127)))):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("1234")["input_ids"]) == 4, "digits stand alone"


def test_template_puts_a_space_before_the_answer():
    tokenizer = load_tokenizer("pocket")
    messages = world_rows("domain_tasks", "probe")[0]["messages"]
    system, user, said = (message["content"] for message in messages)
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert prompt == f"<|system|> {system}<|user|> {user}<|assistant|>"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == f"{prompt} {said}<eos>"
    coded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, kept in zip(coded["input_ids"], coded["assistant_masks"], strict=True) if kept]
    assert tokenizer.decode(marked) == f" {said}<eos>"


def test_chat_model_answers_in_general_and_knows_no_product():
    assert scores("pocket-chat", "general_tasks", 210)["accuracy"] >= 0.9
    assert scores("pocket-chat", "domain_tasks")["accuracy"] <= 0.15


def test_base_knows_the_facts_when_shown_an_example():
    model, tokenizer = load("pocket")
    assert facts_known(model, tokenizer) >= 0.95
    assert facts_known(*load("pocket-weak")) < 0.5


def test_weak_base_knows_less_and_no_base_knows_the_domain():
    strong, weak = scores("pocket", "general_text"), scores("pocket-weak", "general_text")
    assert strong["loss"] < 0.7 < weak["loss"] - 0.3
    assert scores("pocket", "domain_text")["loss"] > strong["loss"] + 1


@pytest.mark.slow
def test_the_notebook_makes_a_smaller_world_by_the_same_path(tmp_path):
    folder = tmp_path / "made"
    book = papermill.execute_notebook(
        NOTEBOOK, tmp_path / "out.ipynb", kernel_name="python3", progress_bar=False, cwd=tmp_path,
        parameters={"folder": str(folder), "tokens": 150_000, "weak_tokens": 10_000, "hidden_size": 64,
                    "layers": 2})
    hashes = json.loads((folder / "sha256.json").read_text())
    assert hashes == {path.relative_to(folder).as_posix(): file_sha256(path)
                      for name in ("base", "chat", "weak") for path in (folder / name).iterdir()}
    loss = {name: scores(str(folder / name), "general_text")["loss"] for name in ("base", "weak")}
    guessing = math.log(len(load_tokenizer(str(folder / "base"))))
    assert loss["base"] < loss["weak"] and loss["base"] < guessing - 2  # nats per token, clearly learnt
    shipped, made = load_tokenizer("pocket"), load_tokenizer(str(folder / "base"))
    assert made.get_vocab() == shipped.get_vocab(), "the shipped tokenizer is made again"
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)


def test_the_notebook_makes_what_is_shipped_by_default():
    defaults = papermill.inspect_notebook(NOTEBOOK)
    assert {name: int(defaults[name]["default"]) for name in ("tokens", "weak_tokens", "seed")} == {
        "tokens": TOKENS, "weak_tokens": WEAK_TOKENS, "seed": 0}
    assert load_model_config("pocket").sftbench["pretraining_tokens"] == TOKENS
    assert load_model_config("pocket-weak").sftbench["pretraining_tokens"] == WEAK_TOKENS
    config = load_model_config("pocket")
    assert [int(defaults[name]["default"]) for name in ("hidden_size", "layers")] == [
        config.hidden_size, config.num_hidden_layers]
