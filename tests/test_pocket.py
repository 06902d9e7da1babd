"""The embedded world, and the weights that are shipped with it."""

import hashlib
import json

import pytest

from sftbench import pocket
from sftbench.pocket import world

EVERY_ROLE = [(role, split) for role in world.ROLES for split in world.SPLITS]


def task_key(row):
    """What is asked: system prompt and user input."""
    return tuple(message["content"] for message in row["messages"][:-1])


def answer(row):
    return row["messages"][-1]["content"]


@pytest.mark.parametrize("related", [True, False])
def test_same_seed_gives_the_same_bytes(tmp_path, related):
    first = world.write(tmp_path / "a", seed=3, related=related)
    second = world.write(tmp_path / "b", seed=3, related=related)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len(first) == 8 and all(path.stat().st_size > 1000 for path in first)


def test_files_hold_the_rows(tmp_path):
    for path, (role, split) in zip(world.write(tmp_path, seed=1), EVERY_ROLE, strict=True):
        assert path.name == (f"{role}.jsonl" if split == "train" else f"{role}_probe.jsonl")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert rows == world.rows(role, split, seed=1)


def test_seed_changes_the_domain_only():
    for role, split in EVERY_ROLE:
        same = world.rows(role, split, seed=0) == world.rows(role, split, seed=1)
        assert same == role.startswith("general")
    assert set(world.products(0)) != set(world.products(1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("related", [True, False])
def test_no_probe_row_and_no_probe_question_is_trained(seed, related):
    for role in world.ROLES:
        train, probe = (world.rows(role, split, seed, related) for split in world.SPLITS)
        keys = (lambda row: row["text"]) if role.endswith("text") else task_key
        assert not {keys(row) for row in train} & {keys(row) for row in probe}
        assert len({keys(row) for row in probe}) == len(probe)


@pytest.mark.parametrize("seed", range(4))
def test_no_question_about_a_probed_product_or_person_is_trained(seed):
    probed = {name for name in world.products(seed)
              if any(name in task_key(row)[-1] for row in world.rows("domain_tasks", "probe", seed))}
    asked = {name for name in world.people()
             if any(name in task_key(row)[-1].split() for row in world.rows("general_tasks", "probe"))}
    assert len(probed) == 10 and asked
    for row in world.rows("domain_tasks", "train", seed) + world.rows("general_tasks", "train"):
        words = set(task_key(row)[-1].replace("?", " ").replace(".", " ").split())
        assert not words & (probed | asked)
    told = " ".join(row["text"] for row in world.rows("domain_text", "train", seed))
    assert all(name in told for name in probed), "the handbook tells about every product"


def test_pretraining_text_holds_no_product_and_no_probe():
    from itertools import islice

    texts = list(islice(world.pretraining_text(), 20_000))
    assert not set(texts) & {row["text"] for row in world.rows("general_text", "probe")}
    words = {word.strip(".,?:") for text in texts for word in text.split()}
    assert not words & (set(world.products(0)) - set(world.people()))
    probed = {task_key(row)[-1] for row in world.rows("general_tasks", "probe")}
    assert not [text for text in texts if "?" in text and any(question in text for question in probed)]


def test_probe_sizes():
    for role in world.ROLES:
        assert 100 <= len(world.rows(role, "probe")) <= 250


@pytest.mark.parametrize("related", [True, False])
def test_three_task_types_share_their_user_inputs(related):
    wanted = {}
    for row in world.rows("domain_tasks", "train", related=related):
        system, user = task_key(row)
        wanted.setdefault(user, set()).add(answer(row))
    assert all(len(answers) == 3 for answers in wanted.values()), "the system prompt alone tells what is wanted"


def test_related_tasks_have_the_form_of_general_tasks():
    general = {task_key(row)[-1].rsplit(" ", 1)[0] for row in world.rows("general_tasks") if len(row["messages"]) == 3}
    for related in (True, False):
        forms = {task_key(row)[-1].rsplit(" ", 1)[0] for row in world.rows("domain_tasks", related=related)}
        assert (forms <= general) == related


def test_unknown_role_is_refused():
    with pytest.raises(KeyError, match="domain_texts"):
        world.rows("domain_texts")
