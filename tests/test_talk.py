"""Talk: several checkpoints, the same prompts, answers as plain transformers gives them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftbench.cli import main
from sftbench.evaluation import chat
from sftbench.evaluation.chat import talk
from sftbench.models import checkpoint
from sftbench.models.checkpoint import CheckpointRef
from sftbench.recipes.recipe import Recipe, override
from sftbench.reports.text import format_answers
from sftbench.runs.folder import read_result, store_folder
from sftbench.training.chain import run_chain
from tests.conftest import bad_input, small_rows


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A small finished run of two stages that has learnt a little."""
    folder = tmp_path_factory.mktemp("talk")
    paths = {}
    for role in ("domain_text", "domain_tasks"):
        paths[role] = str(folder / f"{role}.jsonl")
        with open(paths[role], "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in small_rows(role))
    return str(run_chain(override(Recipe(), mode="2", model=make_model(), max_steps=12, probe_rows=4,
                                  yardstick=False, learning_rate=1e-2, pretraining_learning_rate=1e-2,
                                  output_dir=str(folder / "run"), **paths)))


def plainly(folder, question: str, tokens: int = 8, before: tuple = ()) -> str:
    """The greedy answer by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    batch = tokenizer.apply_chat_template([*before, {"role": "user", "content": question}],
                                          return_tensors="pt", add_generation_prompt=True, return_dict=True)
    with torch.no_grad():
        output = model.generate(**batch, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return tokenizer.decode(output[0, batch["input_ids"].shape[1]:], skip_special_tokens=True).strip()


def test_every_checkpoint_answers_every_prompt_as_plain_transformers_does(run, make_model):
    stages = read_result(run)["stages"]
    folders = {f"{run}:start": make_model(), f"{run}:cpt": store_folder(run) / stages[0]["key"] / "model",
               run: store_folder(run) / stages[1]["key"] / "model", make_model("llama"): make_model("llama")}
    prompts = ["Where is item 3?", "Where is item 5?"]
    answers = talk(list(folders), prompts, max_new_tokens=8)
    assert [(entry["prompt"], entry["checkpoint"]) for entry in answers] == [
        (prompt, name) for prompt in prompts for name in folders]
    assert all(entry["answer"] == plainly(folders[entry["checkpoint"]], entry["prompt"]) for entry in answers)
    assert len({entry["answer"] for entry in answers}) > 2


def test_a_run_is_found_by_its_name_where_runs_lie(run, monkeypatch):
    monkeypatch.setenv("SFTBENCH_RUNS", str(Path(run).parent))
    assert [CheckpointRef.parse(f"run{stage}") for stage in ("", ":start", ":cpt")] == [
        CheckpointRef.parse(f"{run}{stage}") for stage in ("", ":start", ":cpt")]


def test_without_a_prompt_the_probes_questions_are_asked(run, capsys):
    assert main(["talk", f"{run}:start", run, "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    facts = {row["messages"][0]["content"]: row["messages"][1]["content"]
             for row in small_rows("domain_tasks")}
    assert len(answers) == 6 and all(facts[entry["prompt"]] == entry["wanted"] for entry in answers)
    assert main(["talk", f"{run}:start", run]) == 0
    text = capsys.readouterr().out
    assert text.count("wanted") == 3 and text.count(":start ") == 3
    assert max(map(len, text.splitlines())) <= 100


def test_a_system_prompt_is_read_first(run, make_model):
    answer, = talk([make_model()], ["Where is item 3?"], system="Say Quito.", max_new_tokens=8)
    system = {"role": "system", "content": "Say Quito."}
    assert answer["answer"] == plainly(make_model(), "Where is item 3?", before=(system,))
    assert answer["answer"] != plainly(make_model(), "Where is item 3?")


def test_an_answer_that_reaches_max_new_tokens_is_marked():
    whole, cut = (talk(["pocket-chat"], ["Say white cheese black again."], max_new_tokens=tokens)[0]
                  for tokens in (64, 2))
    assert cut["cut"] and not whole["cut"] and whole["answer"].startswith(cut["answer"])


@pytest.mark.parametrize(("name", "field", "named"), [
    ("{run}:sft", "stage", "start, cpt, domain_sft"), ("{run}x:start", "", None), ("nowhere", "", None),
])
def test_a_checkpoint_that_is_not_there_is_refused_before_any_loads(run, name, field, named, monkeypatch):
    monkeypatch.setattr(checkpoint, "load_model", lambda *args, **more: pytest.fail("a model was loaded"))
    with bad_input(field, run if field else name.format(run=run), match=named):
        talk([run, name.format(run=run)], ["x"])
    with bad_input("prompts"):
        talk(["pocket"])
    assert CheckpointRef.parse(run) == CheckpointRef.parse(f"{run}:domain_sft") == CheckpointRef(Path(run), 1)
    assert CheckpointRef.parse(f"{run}:start") == CheckpointRef(Path(run), None)


def test_the_table_shows_text_as_text():
    prompt = {"prompt": "one\x1b[2J"}
    text = format_answers([{"checkpoint": "a", **prompt, "answer": "two\nthree " + "x" * 200, "cut": True},
                           {"checkpoint": "b" * 80, **prompt, "answer": "", "cut": False}])
    lines = text.splitlines()
    assert text.count("[cut]") == 2 and "[cut]" in text.split("…bbb")[0]
    assert lines[0] == "one⟨U+001B⟩[2J" and "two" in lines[1] and "three" in lines[2]
    assert "(nothing)" in lines[-3] and "…bbb" in lines[-3] and max(map(len, lines)) <= 100


def test_a_question_with_several_answers_is_put_once():
    def row(question, answer):
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    rows = [row("a", "1"), row("a", "2"), row("b", "1"), row("a", "3"), row("c", "1"), row("d", "1")]
    assert chat._different_questions(rows) == [rows[0], rows[2], rows[4]]
