"""The prompt alone: the start model with training rows in its prompts, as many as fit, and its line."""

import json

import pytest

from sftbench.data.tokenization import encode_prompt, probe_pieces
from sftbench.evaluation.scoring import PROMPT_TOKENS, ProbeSet, prompt_alone
from sftbench.models.checkpoint import ModelState
from sftbench.recipes.recipe import Recipe, override
from sftbench.reports.ledger import format_ledger, format_result_ledger
from sftbench.runs.answers import read_answers
from sftbench.runs.folder import read_result
from sftbench.training.chain import run_chain
from sftbench.training.prepare import prepare_recipe
from tests.conftest import small_rows
from tests.test_views import result

ROWS = small_rows("domain_tasks")


def probe_set(tokenizer, rows: list[dict], max_new_tokens: int = 8) -> ProbeSet:
    return ProbeSet({"domain_tasks": rows}, tokenizer, 64, max_new_tokens, False, "exact")


def test_a_prompt_has_the_system_message_then_the_examples_then_the_question(tokenizer):
    system = {"role": "system", "content": "Answer with a city."}
    probes = probe_set(tokenizer, [{"messages": [system, *ROWS[9]["messages"]]}])
    train = [{"messages": [{"role": "system", "content": "its own"}, *row["messages"]]} for row in ROWS[:3]]
    prompted, count = prompt_alone(probes, "domain_tasks", train, 1000)
    row, = prompted.rows["domain_tasks"]
    assert count == 3 and tokenizer.decode(encode_prompt(tokenizer, row)) == (
        "<system> Answer with a city.<user> Where is item 0?<assistant> Lisbon<eos><user> Where is item 1?"
        "<assistant> Lima<eos><user> Where is item 2?<assistant> Delhi<eos><user> Where is item 9?"
        "<assistant>")
    (_, piece), = probe_pieces(tokenizer, prompted.rows["domain_tasks"], 1000)[0]
    assert tokenizer.decode([label for label in piece.labels if label >= 0]).strip() == "Lima<eos>", \
        "its own answer alone counts in the loss"


def test_as_many_examples_are_shown_as_fit_beside_question_and_answer(tokenizer):
    probes = probe_set(tokenizer, ROWS[:4], 10)
    sizes = [max(len(encode_prompt(tokenizer, row)) for row in prompt_alone(
        probes, "domain_tasks", ROWS[8:], 10**6, most)[0].rows["domain_tasks"]) for most in range(1, 9)]
    assert prompt_alone(probes, "domain_tasks", ROWS[8:], 10**6)[1] == 8
    for count, size in enumerate(sizes, 1):
        assert prompt_alone(probes, "domain_tasks", ROWS[8:], size + 10)[1] == count
    assert prompt_alone(probes, "domain_tasks", ROWS[8:], sizes[0] + 9) is None


def test_the_tokens_of_all_prompts_are_limited(tokenizer):
    long = [{"messages": [{"role": "user", "content": "Where is " * 90 + "it?"}, row["messages"][1]]}
            for row in ROWS]
    prompted, count = prompt_alone(probe_set(tokenizer, ROWS * 5), "domain_tasks", long, 10**6)
    tokens = sum(len(encode_prompt(tokenizer, row)) for row in prompted.rows["domain_tasks"])
    assert 0 < count < 8 and tokens <= PROMPT_TOKENS < tokens * (count + 1) / count


@pytest.mark.parametrize("other", [
    {"scorer": "regex"}, {"tools": [{"type": "function"}]},
    {"messages": [*ROWS[0]["messages"], *ROWS[1]["messages"]]}])
def test_rows_that_are_no_plain_question_are_no_example(tokenizer, other):
    train = [ROWS[0] | other, ROWS[2]]
    prompted, count = prompt_alone(probe_set(tokenizer, ROWS[5:6]), "domain_tasks", train, 1000)
    assert count == 1 and prompted.rows["domain_tasks"][0]["messages"][0] == ROWS[2]["messages"][0]


@pytest.mark.parametrize("mode", ["1", "6"])
def test_a_run_has_the_line_once_and_takes_it_from_the_store(mode, make_model, small_files, tmp_path,
                                                            monkeypatch):
    recipe = override(Recipe(), mode=mode, model=make_model(), chat_model=make_model("llama"), max_steps=2,
                      probe_rows=8, probe_share=0.3, output_dir=str(tmp_path / "one"), **small_files)
    folder = run_chain(recipe)
    done, rows = read_result(folder), read_answers(folder)
    alone = done["prompt_alone"]
    assert 1 <= alone["examples"] <= 8 and set(alone["probes"]) == {"domain_tasks"}
    assert set(alone["change_intervals"]["domain_tasks"]) == {"loss", "accuracy"}
    plain = [row for row in rows["start"] if row.role == "domain_tasks"]
    assert [row.prompt for row in rows["prompt alone"]] == [row.prompt for row in plain]
    assert [row.nats for row in rows["prompt alone"]] != [row.nats for row in plain]
    train = {json.dumps(row["messages"]) for row in prepare_recipe(recipe).roles["domain_tasks"].train}
    shown = prepare_recipe(recipe).prompted[0].rows["domain_tasks"][0]["messages"][:2]
    assert json.dumps([{name: turn[name] for name in ("role", "content")} for turn in shown]) in train
    text = format_ledger(folder)
    assert [line.split()[:2] for line in text.splitlines()].count(["prompt", "alone"]) == 1
    monkeypatch.setattr(ModelState, "load", lambda *_: pytest.fail("a model was loaded"))
    again = read_result(run_chain(override(recipe, output_dir=str(tmp_path / "two"))))
    assert again["prompt_alone"] == alone


def test_no_line_where_none_is_wanted(make_model, small_files, tmp_path):
    recipe = override(Recipe(), mode="1", model=make_model(), max_steps=1, probe_rows=4, prompt_examples=0,
                      output_dir=str(tmp_path), **small_files)
    assert "prompt_alone" not in read_result(run_chain(recipe))


@pytest.mark.parametrize(("span", "verdict"), [
    ([0.1, 0.3], "training beats the prompt"), ([-0.1, 0.3], "within chance"),
    ([0.2, 0.3], "training beats the prompt")])
def test_the_ledger_says_whether_training_beats_it(span, verdict):
    about = result() | {"prompt_alone": {
        "examples": 5, "probes": {"domain_tasks": {"loss": 2.0, "accuracy": 0.4, "f1": 0.5}},
        "change_intervals": {"domain_tasks": {"accuracy": span}}}}
    text = " ".join(format_result_ledger(about).split())
    assert f"(5 training rows shown to the start model): 40%; trained 60%: {verdict}" in text.replace(
        "which is ", "")
    worse = about | {"stages": [about["stages"][0] | {"probes": {"domain_tasks": {
        "loss": 1.0, "accuracy": 0.1, "f1": 0.2}}}]}
    worse["prompt_alone"] = worse["prompt_alone"] | {
        "change_intervals": {"domain_tasks": {"accuracy": [-0.4, -0.2]}}}
    assert "the prompt beats training" in " ".join(format_result_ledger(worse | {"start": {
        "name": "base", "probes": {"domain_tasks": about["start"]["probes"]["domain_tasks"]}}}).split())
