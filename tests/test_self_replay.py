"""Self-replay: a start model's own answers, written once, and used as any file of general tasks."""

import json
from pathlib import Path

import pytest

from sftbench.evaluation.probes import generate_answers
from sftbench.models.loading import load_model, load_tokenizer
from sftbench.named import self_replay
from sftbench.named.self_replay import PROMPTS, settle_self_replay
from sftbench.recipes.recipe import Recipe, override
from sftbench.sources.names import SELF_REPLAY, check_source
from sftbench.training.prepare import prepare_recipe

from .conftest import bad_input

MODE = str(Path(__file__).parent.parent / "notebooks" / "self_replay.toml")
RECIPE = override(Recipe(), mode=MODE, general_tasks=SELF_REPLAY)


def test_the_prompts_are_many_and_different():
    assert len(PROMPTS) == len(set(PROMPTS)) >= 150
    assert all(prompt == prompt.strip() and len(prompt) < 100 for prompt in PROMPTS)


def test_the_rows_are_the_models_own_answers_and_written_once(monkeypatch):
    settled = settle_self_replay(RECIPE, "pocket-chat")
    rows = [json.loads(line) for line in Path(settled.general_tasks).read_text().splitlines()]
    assert len(PROMPTS) / 4 < len(rows) <= len(PROMPTS)
    model, tokenizer = load_model("pocket-chat"), load_tokenizer("pocket-chat")
    for row in rows[:3]:
        question, answer = row["messages"]
        assert question["content"] in PROMPTS
        assert generate_answers(model, tokenizer, [[question]], 96) == [answer["content"]]
    monkeypatch.setattr(self_replay, "load_model", None)
    assert settle_self_replay(RECIPE, "pocket-chat") == settled
    assert settle_self_replay(settled, "pocket-chat") == settled


def test_a_run_mixes_them_in_and_stores_the_file():
    ready = prepare_recipe(RECIPE)
    assert Path(ready.recipe.general_tasks).name.startswith("self-replay-")
    assert ready.roles["general_tasks"].train[0]["messages"][0]["content"] in PROMPTS
    assert all("general_tasks" in stage.shares for stage in ready.stages)


def test_a_model_that_does_not_end_its_answers_is_refused(make_model):
    start = make_model()
    with bad_input("general_tasks", start):
        settle_self_replay(RECIPE, start)


@pytest.mark.parametrize("role", ["domain_tasks", "general_text", "general_tasks_probe"])
def test_it_is_a_source_of_general_tasks_alone(role):
    check_source(SELF_REPLAY, "general_tasks")
    with bad_input(role, SELF_REPLAY):
        check_source(SELF_REPLAY, role)
