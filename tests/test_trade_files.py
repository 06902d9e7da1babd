"""Files as the trade has them (LLaMA-Factory, TRL, OpenAI, Anthropic, ms-swift, axolotl, well-known sets).

Each is read, checked and prepared as the data of a run, and is the row that its words mean, or is refused
with what to do.
"""

import json

import pytest

from sftbench.data.rows import read_source
from sftbench.recipes.recipe import Recipe, override
from sftbench.training.data_check import measure_data
from sftbench.training.prepare import prepare_recipe
from tests.conftest import bad_input


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text} | more


def system(text):
    return {"role": "system", "content": text}


def call(city, **more):
    return {"type": "function", "function": {"name": "sky", "arguments": {"city": city}}} | more


SKY = {"name": "sky", "description": "The sky over a city.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}
TOOL = {"type": "function", "function": SKY}
SKY_ROUND = [user("Sky over Bern?"), answer("", tool_calls=[call("Bern")]),
             {"role": "tool", "content": "grey"}, answer("It is grey.")]

# Name: the record as the trade writes it, the row that it is, fields that nothing reads. `@` is the number of
# the row, so that rows differ.
FILES = {
    "alpaca with history and system": (
        {"instruction": "Name the capital @.", "input": "Of Peru.", "output": "Lima.", "system": "You guide.",
         "history": [["Hello", "Hi!"], ["Well?", "Yes."]]},
        {"messages": [system("You guide."), user("Hello"), answer("Hi!"), user("Well?"), answer("Yes."),
                      user("Name the capital @.\nOf Peru."), answer("Lima.")]}, []),
    "sharegpt with tools": (
        {"conversations": [{"from": "human", "value": "Sky over Bern? @"},
                           {"from": "function_call",
                            "value": '{"name": "sky", "arguments": {"city": "Bern"}}'},
                           {"from": "observation", "value": "grey"}, {"from": "gpt", "value": "It is grey."}],
         "system": "Use tools.", "tools": json.dumps([SKY])},
        {"messages": [system("Use tools."), user("Sky over Bern? @"), *SKY_ROUND[1:]], "tools": [TOOL]}, []),
    "parts with weights": (
        {"messages": [
            {"role": "system", "content": [{"type": "text", "value": "Be brief."}], "loss_weight": 0.0},
            {"role": "user", "content": [{"type": "text", "value": "Two and two? @"}], "loss_weight": 0.0},
            {"role": "assistant", "content": [{"type": "text", "value": "5"}], "loss_weight": 0.0},
            {"role": "user", "content": [{"type": "text", "value": "Again."}], "loss_weight": 0.0},
            {"role": "assistant", "loss_weight": 1.0, "content": [
                {"type": "reasoning", "value": "Twice two."}, {"type": "text", "value": "4"}]}]},
        {"messages": [system("Be brief."), user("Two and two? @"), answer("5", train=False), user("Again."),
                      answer("4", reasoning_content="Twice two.")]}, []),
    "parts with a call": (
        {"messages": [
            {"role": "system", "content": [{"type": "text", "value": "Use tools."},
                                           {"type": "tools", "value": json.dumps([SKY])}]},
            {"role": "user", "content": [{"type": "text", "value": "Sky over Bern? @"}]},
            {"role": "assistant", "content": [
                {"type": "tool_call", "value": '{"name": "sky", "arguments": {"city": "Bern"}}'}]},
            {"role": "tool", "content": [{"type": "text", "value": "grey"}]},
            {"role": "assistant", "content": [{"type": "text", "value": "It is grey."}]}]},
        {"messages": [system("Use tools."), user("Sky over Bern? @"), *SKY_ROUND[1:]], "tools": [TOOL]}, []),
    "KTO, the good answers": (
        {"messages": [user("Why? @"), answer("So.")], "label": True},
        {"messages": [user("Why? @"), answer("So.")]}, []),
    "OpenAI with weights": (
        {"messages": [system("Be wry."), user("Hi @"), answer("Hello.", weight=0), user("Again"),
                      answer("Oh, you.", weight=1)]},
        {"messages": [system("Be wry."), user("Hi @"), answer("Hello.", train=False), user("Again"),
                      answer("Oh, you.")]}, []),
    "OpenAI with tools": (
        {"messages": [user("Sky over Bern? @"),
                      {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": {
                          "name": "sky", "arguments": '{"city": "Bern"}'}}]},
                      {"role": "tool", "tool_call_id": "call_1", "content": "grey"}, answer("It is grey.")],
         "parallel_tool_calls": False, "tools": [TOOL]},
        {"messages": [user("Sky over Bern? @"), answer("", tool_calls=[call("Bern", id="call_1")]),
                      {"role": "tool", "content": "grey", "tool_call_id": "call_1"}, answer("It is grey.")],
         "tools": [TOOL]}, ["parallel_tool_calls"]),
    "Anthropic": (
        {"system": "Be kind.", "messages": [
            user("Sky over Bern? @"),
            {"role": "assistant", "content": [{"type": "text", "text": "I look."}, {
                "type": "tool_use", "id": "t1", "name": "sky", "input": {"city": "Bern"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "grey"}]},
            answer("It is grey.")]},
        {"messages": [system("Be kind."), user("Sky over Bern? @"),
                      answer("I look.", tool_calls=[call("Bern", id="t1")]),
                      {"role": "tool", "content": "grey", "tool_call_id": "t1"}, answer("It is grey.")]}, []),
    "Dolly": (
        {"instruction": "How is it? @", "context": "Tea is hot.", "response": "Hot.",
         "category": "closed_qa"},
        {"messages": [user("Tea is hot.\n\nHow is it? @"), answer("Hot.")]}, ["category"]),
    "SQuAD": (
        {"id": "5@", "title": "Tea", "context": "Tea is hot.", "question": "How is it? @",
         "answers": {"text": ["hot", "is hot"], "answer_start": [7, 4]}},
        {"messages": [user("Tea is hot.\n\nHow is it? @"), answer("hot")]}, ["id", "title"]),
    "several answers": (
        {"question": "Who? @", "answer": ["Ada", "Ada L."]},
        {"messages": [user("Who? @"), answer("Ada")]}, []),
    "an answer with other names for it": (
        {"question": "Who? @", "answer": {"value": "Ada", "aliases": ["A."]}, "question_id": "x"},
        {"messages": [user("Who? @"), answer("Ada")]}, ["question_id"]),
    "MMLU": (
        {"question": "Which? @", "subject": "law", "choices": ["red", "blue"], "answer": 0},
        {"messages": [user("Which? @\nA. red\nB. blue"), answer("A")]}, ["subject"]),
    "MedMCQA, its columns named": (
        {"id": "@", "question": "Which? @", "opa": "red", "opb": "blue", "opc": "white", "opd": "grey",
         "answer": 0, "subject_name": "Anatomy"},
        {"messages": [user("Which? @\nA. red\nB. blue\nC. white\nD. grey"), answer("A")]},
        ["id", "subject_name"]),
    "ARC": (
        {"id": "M@", "question": "Which? @", "choices": {"text": ["red", "blue"], "label": ["A", "B"]},
         "answerKey": "B"}, {"messages": [user("Which? @\nA. red\nB. blue"), answer("B")]}, ["id"]),
    "ms-swift": (
        {"system": "Be brief.", "query": "And? @", "response": "No.", "history": [["Is it?", "Yes."]]},
        {"messages": [system("Be brief."), user("Is it?"), answer("Yes."), user("And? @"), answer("No.")]},
        []),
    "ms-swift with loss": (
        {"messages": [user("a @"), answer("b", loss=False), user("c"), answer("d", loss=True)]},
        {"messages": [user("a @"), answer("b", train=False), user("c"), answer("d")]}, []),
    "axolotl": (
        {"conversations": [{"from": "human", "value": "a @", "train": False},
                           {"from": "gpt", "value": "b", "train": False}, {"from": "human", "value": "c"},
                           {"from": "gpt", "value": "d", "train": True}]},
        {"messages": [user("a @"), answer("b", train=False), user("c"), answer("d")]}, []),
    "GSM8K": (
        {"question": "Two and two and @?", "answer": "Twice two.\n#### 4"},
        {"messages": [user("Two and two and @?"), answer("Twice two.\n#### 4")]}, []),
    "UltraChat": (
        {"prompt": "Hi @", "prompt_id": "ab", "messages": [user("Hi @"), answer("Yes?"), user("Bye"),
                                                          answer("Bye.")]},
        {"messages": [user("Hi @"), answer("Yes?"), user("Bye"), answer("Bye.")]}, ["prompt", "prompt_id"]),
    "turns in a list": (
        {"conversations": ["Hi @", "Yes?", "Bye", "Bye."], "source": "forum"},
        {"messages": [user("Hi @"), answer("Yes?"), user("Bye"), answer("Bye.")]}, ["source"]),
    "names with capitals, and thoughts": (
        {"Question": "Fever? @", "Complex_CoT": "It may be a cold.", "Response": "Rest."},
        {"messages": [user("Fever? @"), answer("Rest.", reasoning_content="It may be a cold.")]}, []),
    "names in capitals": (
        {"INSTRUCTION": "Say @", "RESPONSE": "Done.", "SOURCE": "wiki"},
        {"messages": [user("Say @"), answer("Done.")]}, ["SOURCE"]),
    "Orca": (
        {"id": "x", "system_prompt": "You think.", "question": "Why? @", "response": "So."},
        {"messages": [system("You think."), user("Why? @"), answer("So.")]}, ["id"]),
    "TRL, a prompt of messages": (
        {"prompt": [user("Hi @")], "completion": [answer("Yes?")]},
        {"messages": [user("Hi @"), answer("Yes?")]}, []),
    "a wiki": (
        {"id": "1@", "url": "https://wiki/@", "title": "Tea", "text": "Tea @ is a drink of leaves."},
        {"text": "Tea @ is a drink of leaves."}, ["id", "title"]),
}
REFUSED = {
    "DPO, alpaca": ({"instruction": "Why? @", "input": "", "chosen": "So.", "rejected": "No."}, "chosen",
                    r"FILE\[output=chosen\]"),
    "DPO, a prompt": ({"prompt": "Why? @", "chosen": "So.", "rejected": "No."}, "chosen",
                      r"FILE\[completion=chosen\]"),
    "DPO, messages alone": ({"chosen": [user("Why? @"), answer("So.")],
                             "rejected": [user("Why? @"), answer("No.")]}, "chosen",
                            r"FILE\[messages=chosen\]"),
    "DPO, sharegpt": ({"conversations": [{"from": "human", "value": "Why? @"}],
                       "chosen": {"from": "gpt", "value": "So."},
                       "rejected": {"from": "gpt", "value": "No."}}, "chosen", "at the end of its messages"),
    "DPO, OpenAI": ({"input": {"messages": [user("Why? @")]}, "preferred_output": [answer("So.")],
                     "non_preferred_output": [answer("No.")]}, "preferred_output", "preference data"),
    "KTO, the bad answers": ({"instruction": "Why? @", "output": "No.", "kto_tag": False}, "kto_tag",
                             "keep the good rows only"),
    "pictures": ({"messages": [user("<image>What? @"), answer("A cat.")], "images": ["cat.jpg"]}, "images",
                 "only text"),
    "sound": ({"conversations": [{"from": "human", "value": "<audio>What? @"},
                                 {"from": "gpt", "value": "A dog."}], "audios": ["dog.wav"]}, "audios",
              "only text"),
    "a question without an answer": ({"context": "Tea is hot.", "question": "When? @", "answers": {
        "text": [], "answer_start": []}}, "answers", "no answer"),
}


def numbered(value, number: int):
    return json.loads(json.dumps(value, ensure_ascii=False).replace("@", str(number)))


def write(folder, record) -> str:
    path = folder / "file.jsonl"
    path.write_text("".join(json.dumps(numbered(record, number)) + "\n" for number in range(12)))
    return str(path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_trade_is_read_as_what_it_means(name, tmp_path, make_model):
    record, row, unused = FILES[name]
    path, role = write(tmp_path, record), "domain_text" if "text" in row else "domain_tasks"
    rows = read_source(path, role)
    assert list(rows.table) == [numbered(row, number) for number in range(12)]
    assert list(rows.about["unused"]) == unused and rows.about["bad"] == 0
    report = measure_data(path, model=make_model())
    assert (report.role, report.verdict, list(report.unused)) == (role, "ready", unused)
    assert report.counts.trained and not report.counts.dropped
    mode, more = ("1", {}) if role == "domain_tasks" else ("2", {"domain_tasks": write_other(tmp_path)})
    ready = prepare_recipe(override(Recipe(), **{
        "mode": mode, "model": make_model(), "max_steps": 1, "max_length": 256, role: path} | more))
    assert len(ready.roles[role].train) + len(ready.roles[role].probe) == 12
    assert all(steps == 1 for steps in ready.plan.values())


def write_other(folder) -> str:
    (folder / "tasks").mkdir()
    return write(folder / "tasks", FILES["several answers"][0])


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_data_for_this_is_refused_with_what_to_do(name, tmp_path, make_model):
    record, field, remedy = REFUSED[name]
    path = write(tmp_path, record)
    with bad_input(field, f"{path}, line 1", match=remedy):
        read_source(path, "domain_tasks")
    report = measure_data(path, model=make_model())
    assert report.verdict == "will stop" and report.bad == 12 and len(report.bad_reasons) == 1
    assert report.proposal is None, "its fields are known"


def test_an_error_names_the_columns_as_they_are_called(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Frage,Antwort\nWo?,Hier.\n")
    with bad_input("", f"{path}, line 2", match="it has 'Frage', 'Antwort'"):
        read_source(str(path), "domain_tasks")


def test_one_text_file_is_a_source_of_text(tmp_path, make_model):
    path = tmp_path / "wiki.txt"
    path.write_text("\n\n".join(f"Tea {number} is a drink of leaves. " * 20 for number in range(40)))
    report = measure_data(str(path), model=make_model())
    assert (report.role, report.verdict) == ("domain_text", "ready") and report.counts.probe
    ready = prepare_recipe(override(Recipe(), mode="2", model=make_model(), domain_text=str(path),
                                    domain_tasks=write_other(tmp_path), max_steps=1, max_length=256))
    assert "Tea 0" in "".join(row["text"] for role in (ready.roles["domain_text"],)
                              for row in (*role.train, *role.probe))


def test_the_chosen_answers_train_as_the_remedy_says(tmp_path, make_model):
    path = write(tmp_path, REFUSED["DPO, alpaca"][0])
    report = measure_data(f"{path}[output=chosen]", role="domain_tasks", model=make_model())
    assert report.bad == 0 and report.unused == {"rejected": 12} and report.counts.trained


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "ptuning_v2"])
def test_rows_that_are_calls_alone_go_through_a_run(method, tmp_path, make_model):
    from sftbench.evaluation.chat import talk
    from sftbench.reports.text import ask_probes, look_at_data
    from sftbench.training.chain import run_chain
    record = {"messages": [user("Sky over Bern? @"), answer("", tool_calls=[call("Bern")])], "tools": [TOOL]}
    path = write(tmp_path, record)
    ready = prepare_recipe(override(Recipe(), mode="1", method=method, model=make_model(), domain_tasks=path,
                                    max_steps=2, max_length=256, max_new_tokens=4, yardstick=False,
                                    learning_rate=1e-2, output_dir=str(tmp_path / "runs" / "one")))
    assert '"name": "sky"' in look_at_data(ready).replace("\n      ", "").replace("|", "")
    run = run_chain(ready)
    result = json.loads((run / "result.json").read_text())
    assert result["complete"] and result["stages"][-1]["probes"]["domain_tasks"]["loss"] > 0
    assert '"name": "sky"' in ask_probes(run, ready, rows=1)
    asked = talk([str(run)])[0]
    assert '"name": "sky"' in asked["wanted"] and asked["prompt"].startswith("Sky over Bern?")
