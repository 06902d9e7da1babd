"""Every answer before and after: kept once, read without a model, gained and lost between states and runs."""

import json
from dataclasses import asdict, replace

import pytest

import sftbench
from sftbench.cli import main
from sftbench.data.roles import load_roles
from sftbench.evaluation.rating import score_probe
from sftbench.evaluation.reading import wanted_ids
from sftbench.models.checkpoint import ModelState, load_stage
from sftbench.recipes.recipe import Recipe, override, recipe_from_dict
from sftbench.reports.comparison import format_changes
from sftbench.runs.answers import AnsweredRow, changes, read_answers, select_rows, write_answers
from sftbench.runs.folder import read_result
from sftbench.runs.intervals import change_intervals
from sftbench.training.chain import run_chain
from sftbench.training.prepare import prepare_recipe
from tests.conftest import bad_input, small_rows


def row(number: int, score: float, answer: str = "Oslo", **more) -> AnsweredRow:
    values = {"answer": answer, "spoken": answer, "scorer": "exact", "score": score, "f1": score,
              "nats": 2.0 - score, "tokens": 2}
    return AnsweredRow("domain_tasks", number, f"Where is item {number}?", "Oslo", **values | more)


BEFORE = [row(1, 0, "Rome"), row(2, 1), row(3, 0, ""), row(4, 0.5, "Oslo Lima")]
AFTER = [row(1, 1), row(2, 0, "\x1b[31mLima"), row(3, 0, "Bonn", nats=None), row(4, 0.75, "Oslo, Lima")]
TEXT = AnsweredRow("domain_text", 1, "", "It lies in Oslo.", nats=40.0, tokens=4)


@pytest.fixture
def run(tmp_path):
    """A folder with the answers of two states."""
    write_answers(tmp_path, {"start": {"domain_tasks": BEFORE, "domain_text": [replace(TEXT, nats=44.0)]},
                             "sft": {"domain_tasks": AFTER, "domain_text": [TEXT]}})
    return tmp_path


def test_what_is_written_is_read_again(run):
    states = read_answers(run)
    assert list(states) == ["start", "sft"] and states["sft"] == [*AFTER, TEXT]
    line = json.loads((run / "answers.jsonl").read_text().splitlines()[0])
    assert {"stage", "prompt", "wanted", "answer", "score", "nats"} <= set(line)


@pytest.mark.parametrize(("which", "rows"), [
    ("gained", [1, 4]), ("lost", [2]), ("wrong", [2, 3, 4]), ("worst", [1, 2, 4, 1])])
def test_rows_are_chosen_by_what_became_of_them(run, which, rows):
    chosen = select_rows(sftbench.changes(run), which)
    assert [one.row for one in chosen] == rows
    if which == "worst":
        assert chosen[0].role == "domain_text" and chosen[0].loss_after == 10 and chosen[0].loss_before == 11
        losses = [one.loss_after for one in chosen]
        assert losses == sorted(losses, reverse=True)


def test_two_runs_are_compared_row_by_row_whatever_their_order(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    more = AnsweredRow("domain_tasks", 4, "Where is nobody?", "Rome", "Rome", score=1.0)
    write_answers(other, {"start": {"domain_tasks": [row(1, 0)]},
                          "cpt": {"domain_tasks": [more, row(3, 1), row(1, 0, "Bern")]}})
    assert [(one.prompt[-7:], one.before, one.after, one.change) for one in changes(run, other)] == [
        ("item 3?", "Bonn", "Oslo", "gained"), ("item 1?", "Oslo", "Bern", "lost")]
    with bad_input("stage", run, match="it has start, sft"):
        changes(run, other, before="cpt")
    write_answers(other, {"start": {"domain_tasks": [more]}})
    with bad_input("", other, match="in common"):
        changes(run, other)


def test_the_rows_are_a_table_in_pandas_and_text_in_a_notebook(run):
    table = pytest.importorskip("pandas").DataFrame(sftbench.changes(run))  # it comes with datasets
    assert list(table[table["change"] == "gained"]["row"]) == [1, 4]
    assert table["score_after"].sub(table["score_before"]).sum() == pytest.approx(0.25)
    accuracy, rows = sftbench.rows_text(run, "lost").split("\n\n", 1)
    assert accuracy == "accuracy of domain tasks, 4 rows: 0.38 → 0.44, +0.06"  # of 4 rows no interval
    assert rows.startswith("lost, start → sft: 1 of 4 rows")
    assert sftbench.rows_text(run, "worst", role="domain_text", count=1).count("It lies in Oslo.") == 1


def test_a_question_that_stands_twice_is_two_rows(run):
    write_answers(run, {"start": {"domain_tasks": [row(1, 0, "a"), row(1, 0, "b")]},
                        "sft": {"domain_tasks": [row(1, 1, "c"), row(1, 1, "d")]}})
    assert [(one.before, one.after) for one in changes(run)] == [("a", "c"), ("b", "d")]


def test_rows_as_text_are_compact_and_steer_no_terminal(run):
    text = format_changes(changes(run), "lost", ("start", "sft"))
    assert text.splitlines() == [
        "lost, start → sft: 1 of 4 rows", "",
        "domain_tasks 2  Where is item 2?",
        "  wanted                    Oslo",
        "  start   right  loss 0.50  Oslo",
        "  sft     wrong  loss 1.00  ⟨U+001B⟩[31mLima"]
    worst = format_changes(changes(run), "worst", ("start", "sft"), count=1)
    assert worst.splitlines()[0].endswith("4 of 5 rows, the first 1 shown") and "wanted" not in worst
    assert "(nothing)" in format_changes(changes(run), "wrong", ("start", "sft"))


def test_two_states_are_compared_by_accuracy_with_the_interval_of_the_pairs(run):
    numbers = range(1, 21)
    before, after = ([row(number, float(number > least)) for number in numbers] for least in (20, 5))
    write_answers(run, {"start": {"domain_tasks": before}, "sft": {"domain_tasks": after}})
    line, rest = sftbench.rows_text(run, "gained").split("\n\n", 1)
    low, high = change_intervals(before, after)["accuracy"]
    assert 0.5 < low < 0.75 < high < 1 and rest.startswith("gained, start → sft: 15 of 20 rows")
    assert line == f"accuracy of domain tasks, 20 rows: 0.00 → 0.75, +0.75 (95 %: +{low:.2f}…+{high:.2f})"
    write_answers(run, {"start": {"domain_tasks": before},
                        "sft": {"domain_tasks": [row(number, float(number < 3)) for number in numbers]}})
    assert "within chance)" in sftbench.rows_text(run, "gained") and "chance" not in line


def test_the_commands_print_rows_and_json(run, capsys):
    (run / "recipe.json").write_text('{"schema": 1, "recipe": {}}')
    assert main(["show", str(run), "--rows", "gained"]) == 0
    assert "domain_tasks 1" in capsys.readouterr().out
    assert main(["show", str(run), "--rows", "gained", "--json", "--count", "1"]) == 0
    shown, = json.loads(capsys.readouterr().out)
    assert shown == asdict(changes(run)[0])
    assert main(["compare", str(run), str(run), "--rows", "lost", "--role", "domain_tasks"]) == 0
    assert "0 of 4 rows" in " ".join(capsys.readouterr().out.split())
    assert main(["compare", str(run), "--rows", "lost"]) == 2
    assert main(["show", str(run), "--rows", "lost", "--role", "nothing"]) == 2
    (run / "answers.jsonl").unlink()
    assert main(["show", str(run), "--rows", "lost"]) == 2
    assert "sftbench resume" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["{", '{"stage": "start"}', '{"stage": "a", "role": 3}', "[]"])
def test_a_torn_file_is_named(run, line):
    (run / "answers.jsonl").write_text(f"{line}\n")
    with bad_input("", run / "answers.jsonl"):
        read_answers(run)


def test_a_run_keeps_every_answer_and_its_figures_are_their_means(make_model, small_files, tmp_path):
    recipe = override(Recipe(), mode="2", model=make_model(), max_steps=2, probe_rows=6, yardstick=True,
                      output_dir=str(tmp_path / "one"), **small_files)
    folder = run_chain(recipe)
    result, states = read_result(folder), read_answers(folder)
    assert list(states) == ["start", "prompt alone", "cpt", "domain_sft"]
    for entry in (result["start"] | {"name": "start"}, *result["stages"]):
        for role, figures in entry["probes"].items():
            own = [one for one in states[entry["name"]] if one.role == role]
            assert [one.row for one in own] == list(range(1, len(own) + 1))
            lost = [one for one in own if one.nats is not None]
            loss = sum(one.nats for one in lost) / sum(one.tokens for one in lost)
            assert figures["loss"] == pytest.approx(loss, abs=1e-4)
            if scores := [one.score for one in own if one.score is not None]:
                assert figures["accuracy"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
    probe = prepare_recipe(recipe).roles["domain_tasks"].probe
    assert [(one.prompt, one.wanted) for one in states["start"] if one.role == "domain_tasks"] == [
        tuple(message["content"] for message in one["messages"]) for one in probe]
    assert {one.prompt for one in states["cpt"] if one.role == "domain_text"} == {""}
    assert {one["text"] for one in small_rows("domain_text")} >= {
        one.wanted for one in states["cpt"] if one.role == "domain_text"}
    before = (folder / "answers.jsonl").read_text()
    again = override(recipe, output_dir=str(tmp_path / "two"))
    assert (run_chain(again) / "answers.jsonl").read_text() == before, "from the store"


@pytest.fixture(scope="module")
def done(make_model, tmp_path_factory):
    """A finished run of two stages on the small files."""
    folder = tmp_path_factory.mktemp("scored")
    for role in ("domain_text", "domain_tasks"):
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in small_rows(role)))
    return run_chain(override(
        Recipe(), mode="2", model=make_model(), max_steps=2, probe_rows=8, probe_share=0.3, yardstick=True,
        output_dir=str(folder / "run"), domain_text=str(folder / "domain_text.jsonl"),
        domain_tasks=str(folder / "domain_tasks.jsonl")))


def test_another_scorer_scores_a_finished_run_without_a_model(done, monkeypatch, capsys):
    monkeypatch.setattr(ModelState, "load", lambda *_: pytest.fail("a model was loaded"))
    scored = sftbench.score(done, scorer="f1")
    assert list(scored["states"]) == ["start", "prompt alone", "cpt", "domain_sft"]
    for entry in read_result(done)["stages"]:
        figures = entry["probes"]["domain_tasks"]
        assert scored["states"][entry["name"]]["probes"] == {
            "domain_tasks": figures | {"accuracy": figures["f1"]}}
    assert scored["scorers"] == {"domain_tasks": {"f1": 8}}
    assert main(["score", str(done), "--scorer", "contains", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown["states"]["cpt"]) == {"probes", "intervals", "change_intervals"}
    with bad_input("scorer", "domain_tasks"):
        sftbench.score(done, scorer="json")
    with bad_input("probe"):
        sftbench.score(done)


def test_another_probe_is_answered_by_the_stored_models_once(done, tmp_path, monkeypatch, capsys):
    probe = tmp_path / "new.jsonl"
    rows = [{"prompt": f"Where is item {number}?", "completion": "Oslo " * number} for number in range(1, 9)]
    probe.write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    assert main(["score", str(done), "--probe", str(probe), "--scorer", "f1"]) == 0
    printed = capsys.readouterr().out
    assert "start" in printed and "domain_sft" in printed and "f1 (8 rows)" in printed
    with monkeypatch.context() as patch:
        patch.setattr(ModelState, "load", lambda *_: pytest.fail("it was answered before"))
        scored = sftbench.score(done, str(probe), scorer="f1")
    model, tokenizer = load_stage(done)
    recipe = recipe_from_dict(read_result(done)["recipe"])
    rows = [{"messages": [{"role": "user", "content": one["prompt"]}, {
        "role": "assistant", "content": one["completion"]}], "scorer": "f1"} for one in rows]
    longest = max(len(wanted_ids(tokenizer, one)) for one in rows)
    assert scored["states"]["domain_sft"]["probes"]["domain_tasks"] == score_probe(
        model, tokenizer, rows, recipe.max_length, max(recipe.max_new_tokens, longest))


def test_the_runs_own_probe_given_anew_needs_no_answer_anew(done, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelState, "load", lambda *_: pytest.fail("a model was loaded"))
    recipe = recipe_from_dict(read_result(done)["recipe"])
    probe = tmp_path / "own.jsonl"
    probe.write_text("".join(json.dumps(one) + "\n" for one in load_roles(recipe)["domain_tasks"].probe))
    scored, result = sftbench.score(done, str(probe)), read_result(done)
    assert [state["probes"]["domain_tasks"] for state in scored["states"].values()] == [
        entry["probes"]["domain_tasks"] for entry in (result["start"], *result["stages"])]
