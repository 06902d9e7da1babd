"""What a record says beside question and answer: honoured, counted as not used, or a reason to refuse it."""

import json
import unicodedata

import datasets
import pytest

from sftbench.data.conversations import parse_row
from sftbench.data.roles import load_roles
from sftbench.data.rows import read_source
from sftbench.recipes.recipe import Recipe, override
from tests.conftest import bad_input

ASK = {"question": "q", "answer": "a"}
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def conversation(*pairs, **more):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]} | more


def parse(record, kind="tasks"):
    return parse_row(record, kind).row


def answer(**more):
    """The assistant's message of a conversation with these fields in it."""
    return parse({"messages": [TURNS[0], {"role": "assistant", "content": "a"} | more]})["messages"][1]


@pytest.mark.parametrize(("more", "field"), [
    ({"label": False}, "label"), ({"kto_tag": False}, "kto_tag"), ({"label": "false"}, "label"),
    ({"is_correct": 0}, "is_correct"), ({"accepted": "no"}, "accepted"), ({"verdict": "Rejected"}, "verdict"),
    ({"kto_label": -1}, "kto_label"), ({"train": False}, "train"), ({"trainable": 0}, "trainable"),
    ({"rejected": True}, "rejected"), ({"toxic": "true"}, "toxic"),
    ({"quality": "bad"}, "quality"), ({"feedback": "thumbs_down"}, "feedback"),
    ({"weight": 0}, "weight"), ({"sample_weight": 0.3}, "sample_weight"),
    ({"images": ["cat.png"]}, "images"), ({"audio": {"path": "a.wav"}}, "audio"), ({"video": "v"}, "video"),
    ({"context": [{"x": "a"}]}, "context"), ({"context": 3}, "context"), ({"choices": "A"}, "choices"),
    ({"reasoning": ["a"]}, "reasoning"),
])
@pytest.mark.parametrize("shape", [
    ASK, {"prompt": "q", "completion": "a"}, {"instruction": "q", "output": "a"}])
def test_a_row_that_is_not_to_be_trained_or_lacks_what_it_is_about_is_refused(shape, more, field):
    with bad_input(field=field):
        parse(shape | more)
    assert parse(shape) == {"messages": TURNS}


def test_bad_answers_stop_a_run_and_are_left_out_where_bad_rows_are(tmp_path):
    path = lines(tmp_path / "a.jsonl", [
        {"prompt": f"q{number}", "completion": "a", "label": number % 2 == 0} for number in range(20)])
    with bad_input(field="label", where=f"{path}, line 2", match="bad_rows drop"):
        read_source(path, "domain_tasks")
    rows = read_source(path, "domain_tasks", "drop")
    asked = [row["messages"][0]["content"] for row in rows.table]
    assert asked == [f"q{number}" for number in range(0, 20, 2)]
    assert rows.about["unused"] == {} and sum(rows.about["bad_reasons"].values()) == 10


@pytest.mark.parametrize("more", [{"label": True}, {"kto_tag": "true"}, {"weight": 1}, {"images": []},
                                  {"accepted": 1}, {"audio": None}, {"context": ""}, {"weight": 1.0}])
def test_a_row_that_says_that_it_is_a_good_one_is_trained(more):
    parsed = parse_row(ASK | more, "tasks")
    assert parsed.row == {"messages": TURNS} and parsed.unused == []


def test_the_label_of_a_class_says_nothing_of_quality():
    assert parse_row({"text": "t", "label": 0}, "text").unused == ["label"]
    assert parse_row(ASK | {"label": 0}, "tasks").unused == ["label"]
    with bad_input(field="label"):
        parse({"prompt": "q", "completion": "a", "label": 0})
    assert parse_row(ASK | {"label": "sports"}, "tasks").unused == ["label"]
    assert parse_row(ASK | {"rating": 1, "score": 0}, "tasks").unused == ["rating", "score"]
    with bad_input(field="label"):
        parse_row({"text": "t", "label": False}, "text")


@pytest.mark.parametrize("more", [{"train": False}, {"loss": False}, {"weight": 0}, {"loss_weight": 0.0},
                                  {"masked": True}, {"trainable": "false"}, {"ignore": 1}])
def test_a_turn_that_is_marked_is_read_and_not_trained(more):
    assert answer(**more) == {"role": "assistant", "content": "a", "train": False}


@pytest.mark.parametrize("more", [{"train": True}, {"loss_weight": 1.0}, {"weight": 1}, {"mask": False}])
def test_a_turn_that_says_that_it_is_trained_is_one_as_all_are(more):
    assert answer(**more) == TURNS[1]


@pytest.mark.parametrize(("more", "field"), [
    ({"weight": 0.5}, "messages[2].weight"), ({"loss": "half"}, "messages[2].loss"),
    ({"train": 2}, "messages[2].train"), ({"mask": [0, 1]}, "messages[2].mask"),
    ({"train_detail": [{"begin": 0, "end": 3}]}, "messages[2].train_detail"),
    ({"train": True, "weight": 0}, "messages[2]")])
def test_a_weight_that_is_neither_0_nor_1_is_refused(more, field):
    with bad_input(field=field):
        answer(**more)


def test_only_an_assistants_turns_can_be_trained():
    record = {"messages": [TURNS[0] | {"train": True}, TURNS[1]]}
    with bad_input(field="messages[1]"):
        parse(record)
    assert parse({"messages": [TURNS[0] | {"train": False, "mask": True}, TURNS[1]]}) == {"messages": TURNS}


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning", "thought"])
def test_thoughts_in_a_field_of_their_own_are_kept(field):
    assert answer(**{field: "two and two"}) == TURNS[1] | {"reasoning_content": "two and two"}
    assert answer(**{field: ""}) == answer(**{field: None}) == TURNS[1]


def test_thoughts_beside_an_answer_are_its_thoughts():
    for field in ("reasoning", "cot", "rationale"):
        assert parse(ASK | {field: "so"})["messages"][1] == TURNS[1] | {"reasoning_content": "so"}


@pytest.mark.parametrize(("record", "question"), [
    ({"context": "Tea is hot.", "question": "How is it?", "answer": "hot"}, "Tea is hot.\n\nHow is it?"),
    ({"instruction": "How?", "context": "Tea is hot.", "output": "hot"}, "Tea is hot.\n\nHow?"),
    ({"instruction": "How?", "input": "in a word", "context": "Tea.", "response": "hot"},
     "Tea.\n\nHow?\nin a word"),
    ({"passages": ["Tea.", "Hot."], "prompt": "How?", "completion": "hot"}, "Tea.\n\nHot.\n\nHow?"),
    ({"documents": [{"title": "Tea", "text": "Hot."}], "question": "How?", "answer": "hot"},
     "Tea\nHot.\n\nHow?"),
    ({"text": "Tea is hot.", "question": "How?", "answer": "hot"}, "Tea is hot.\n\nHow?"),
    ({"story": "Tea.", "query": "How?", "input": "in a word", "response": "hot"}, "Tea.\n\nHow?\nin a word"),
    ({"question": "How?", "options": ["cold", "hot"], "answer": "B"}, "How?\nA. cold\nB. hot"),
    ({"question": "How?", "choices": {"text": ["cold", "hot"], "label": ["1", "2"]}, "answerKey": "2"},
     "How?\n1. cold\n2. hot"),
    ({"article": "Tea.", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "How?"},
                                      {"role": "assistant", "content": "hot"}]}, "Tea.\n\nHow?"),
])
def test_what_a_question_is_about_stands_before_it_and_its_options_below(record, question):
    parsed = parse_row(record, "tasks")
    asked = next(turn for turn in parsed.row["messages"] if turn["role"] == "user")
    assert asked["content"] == question and parsed.unused == []


def test_the_whole_row_written_out_beside_it_is_not_trained_twice():
    for record in (ASK | {"text": "Q: q A: a"}, {"messages": TURNS, "text": "<user>q<assistant>a"}):
        assert parse_row(record, "tasks").row == {"messages": TURNS}
        assert parse_row(record, "tasks").unused == ["text"]


def test_of_several_answers_the_first_is_trained_and_calls_are_calls():
    record = {"context": "c", "question": "q", "answers": {"text": ["a", "b"], "answer_start": [0, 1]}}
    assert parse(record)["messages"][1] == TURNS[1]
    assert parse({"question": "q", "answers": ["a"]}) == {"messages": TURNS}
    calls = json.dumps([{"name": "f", "arguments": {"x": 1}}])
    row = parse({"query": "q", "tools": json.dumps([TOOL]), "answers": calls})
    assert row == {"tools": [TOOL], "messages": [TURNS[0], {
        "role": "assistant", "content": "", "tool_calls": [CALL]}]}


def test_an_option_may_be_named_by_its_number():
    assert parse({"question": "q", "choices": ["x", "y"], "answer": 1})["messages"][1]["content"] == "B"


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
ROUND = [("user", "q"), ("assistant", ""), ("tool", "1"), ("assistant", "a")]


def called(**more):
    row = conversation(*ROUND, **more)
    row["messages"][1]["tool_calls"] = [CALL]
    return row


@pytest.mark.parametrize("record", [
    {"messages": [TURNS[0], {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "1"},
                  TURNS[1]], "tools": [TOOL]},
    {"messages": [TURNS[0], {"role": "assistant", "content": None, "function_call": {
        "name": "f", "arguments": '{"x": 1}'}}, {"role": "function", "content": "1"}, TURNS[1]],
     "functions": [{"name": "f", "parameters": {}}]},
    {"conversations": [{"from": "human", "value": "q"},
                       {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                       {"from": "observation", "value": "1"}, {"from": "gpt", "value": "a"}],
     "tools": '[{"name": "f", "parameters": {}}]'},
    {"messages": [{"role": "User", "content": "q"},
                  {"role": "tool_call", "content": '{"name": "f", "arguments": {"x": 1}}'},
                  {"role": "tool_response", "content": "1"}, TURNS[1]], "tools": [TOOL]},
    {"messages": [
        {"role": "system", "content": [{"type": "tools", "value": '[{"name": "f", "parameters": {}}]'},
                                       {"type": "text", "value": "s"}]},
        {"role": "user", "content": [{"type": "text", "value": "q"}]},
        {"role": "assistant", "content": [
            {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'}]},
        {"role": "tool", "content": [{"type": "text", "value": "1"}]},
        {"role": "assistant", "content": [{"type": "text", "value": "a"}], "loss_weight": 1.0}]},
    {"messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"x": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "1"}]}]},
        {"role": "assistant", "content": "a"}], "tools": [TOOL]},
])
def test_every_way_to_write_tools_becomes_the_same_row(record):
    row = parse(record)
    if row["messages"][0]["role"] == "system":
        assert row["messages"].pop(0)["content"] == "s"
    assert row == called(tools=[TOOL])


@pytest.mark.parametrize("record", [
    {"messages": [TURNS[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": '}]}]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f(x=1)"}]},
    {"messages": [TURNS[0], {"role": "assistant", "function_call": {"name": "f", "arguments": "[1"}}]}])
def test_a_call_that_is_no_json_is_refused(record):
    field = "conversations[2].value" if "conversations" in record else next(
        f"messages[2].{name}" for name in record["messages"][1] if name != "role")
    with bad_input(field=field):
        parse(record)


def test_calls_one_after_another_are_one_turn():
    record = {"conversations": [
        {"from": "human", "value": "q"}, {"from": "gpt", "value": "I look."},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "1"}, {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "a"}]}
    turns = parse(record)["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "tool", "assistant"]
    assert turns[1] == {"role": "assistant", "content": "I look.", "tool_calls": [CALL, CALL]}


def test_parts_with_thoughts_and_null_fields_are_read():
    record = {"messages": [
        {"role": "user", "content": [{"type": "text", "value": "q", "text": None}], "tool_calls": None},
        {"role": "assistant", "content": [{"type": "reasoning", "value": "so"},
                                          {"type": "text", "value": "a"}]}]}
    assert parse(record) == {"messages": [TURNS[0], TURNS[1] | {"reasoning_content": "so"}]}
    thinking = [{"type": "thinking", "thinking": "so", "signature": "x"}, "a"]
    turns = [{"role": "user", "parts": [{"text": "q"}]},
             {"role": "model", "content": {"type": "text", "text": "a"}}]
    assert parse({"messages": turns}) == {"messages": TURNS}
    assert answer(content=thinking) == TURNS[1] | {"reasoning_content": "so"}


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "image"}, 3,
                                  {"type": "input_audio"}, {"value": "x"}])
def test_parts_that_are_no_text_are_refused(part):
    with bad_input(field="messages[1].content"):
        parse({"messages": [{"role": "user", "content": [part]}, TURNS[1]]})


def test_struct_columns_give_no_call_the_arguments_of_another(tmp_path):
    records = [{"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": name, "arguments": arguments}}]},
        {"role": "tool", "content": "1"}, TURNS[1]], "tools": [{"type": "function", "function": {
            "name": name, "parameters": {"properties": {key: {"type": "string"} for key in arguments}}}}]}
        for name, arguments in (("weather", {"city": "Lima"}), ("time", {"zone": "UTC", "form": "24h"}))]
    table = datasets.Dataset.from_list(records)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    path = lines(tmp_path / "a.jsonl", records)
    wanted = list(read_source(path, "domain_tasks").table)
    assert wanted[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Lima"}
    for name in ("a.parquet", "saved"):
        assert list(read_source(str(tmp_path / name), "domain_tasks").table) == wanted


def test_an_argument_that_is_null_in_json_stays(tmp_path):
    call = {"name": "f", "arguments": {"x": None}}
    record = {"messages": [TURNS[0], {"role": "assistant", "tool_calls": [call]}]}
    path = lines(tmp_path / "a.jsonl", [record])
    row = read_source(path, "domain_tasks").table[0]
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"x": None}


def test_fields_that_nothing_reads_are_counted_those_of_messages_too(tmp_path):
    rows = [ASK | {"id": number, "source": "web", "note": ""} for number in range(30)]
    turns = [TURNS[0] | {"time": 3}, TURNS[1] | {"id": "x", "name": "Ada"}]
    rows += [{"messages": turns, "id": 3, "type": "k"}]
    about = read_source(lines(tmp_path / "a.jsonl", rows), "domain_tasks").about
    assert about["unused"] == {"id": 31, "source": 30, "messages[].time": 1, "messages[].id": 1,
                               "messages[].name": 1}
    text = lines(tmp_path / "b.jsonl", [{"text": "t", "title": "x", "meta": {"a": 1}}])
    assert read_source(text, "domain_text").about["unused"] == {"title": 1, "meta": 1}


def test_bad_rows_are_counted_by_reason(tmp_path):
    rows = [{"question": "q", "answer": number} for number in range(30)] + [{"body": "x"}, ASK]
    about = read_source(lines(tmp_path / "a.jsonl", rows), "domain_tasks", "drop").about
    assert about["bad"] == 31 and len(about["first_bad"]) == 10
    assert list(about["bad_reasons"].values()) == [30, 1] and "'answer'" in next(iter(about["bad_reasons"]))


def roles_of(**values):
    return load_roles(override(Recipe(), model="somebody/else", **values))


def questions(rows) -> set[str]:
    return {row["messages"][0]["content"] for row in rows}


def test_a_question_of_several_answers_is_on_one_side_of_the_split(tmp_path):
    rows = [{"question": f"Where is {number}?", "answer": f"{way} {number}."} for number in range(50)
            for way in ("In", "At", "Near", "By")]
    rows += [{"question": unicodedata.normalize("NFD", f"wo  IST Köln {number}?"), "answer": "x"}
             for number in range(9)]
    rows += [{"question": f"Wo ist Köln {number}?", "answer": "y"} for number in range(9)]
    role = roles_of(domain_tasks=lines(tmp_path / "a.jsonl", rows))["domain_tasks"]
    assert len(role.train) + len(role.probe) == 218 and role.probe

    def plain(rows):
        return {" ".join(unicodedata.normalize("NFC", one).casefold().split()) for one in questions(rows)}

    assert not plain(role.train) & plain(role.probe)


@pytest.mark.parametrize("field", ["group", "document_id", "doc_id", "url"])
def test_the_pieces_of_a_document_are_on_one_side_of_the_split(tmp_path, field):
    rows = [{"text": f"{document} piece {piece}", field: f"d{document}"} for document in range(30)
            for piece in range(5)]
    role = roles_of(domain_text=lines(tmp_path / "a.jsonl", rows))["domain_text"]
    sides = [{row["text"].split()[0] for row in side} for side in (role.train, role.probe)]
    assert sides[1] and not sides[0] & sides[1] and role.rows.about["unused"] == {}


def test_one_document_alone_is_split_by_its_pieces_and_a_large_one_is_trained(tmp_path):
    one = [{"text": f"piece {piece}", "group": "d"} for piece in range(50)]
    role = roles_of(domain_text=lines(tmp_path / "a.jsonl", one))["domain_text"]
    assert 0 < len(role.probe) < 25
    for name in range(5):
        rows = one + [{"text": f"x {piece}", "group": f"e{name}"} for piece in range(5)]
        role = roles_of(domain_text=lines(tmp_path / f"{name}.jsonl", rows))["domain_text"]
        assert {row["text"][0] for row in role.probe} == {"x"} and len(role.train) == 50


def test_a_question_that_a_given_probe_has_with_another_answer_is_counted(tmp_path):
    train = lines(tmp_path / "a.jsonl", [{"question": f"q{number}", "answer": "a"} for number in range(9)])
    probe = lines(tmp_path / "b.jsonl", [{"question": f"q{number}", "answer": answer}
                                         for number, answer in ((1, "b"), (2, "a"))])
    role = roles_of(domain_tasks=train, domain_tasks_probe=probe)["domain_tasks"]
    assert len(role.train) == 8 and role.shared_groups == 1
    assert role.dropped["also in the probe"]["rows"] == 1


def test_the_pockets_data_serve_a_pocket_alone(tmp_path):
    own = override(Recipe(), mode="6", chat_model="somebody/else")
    assert load_roles(own) == {}
    assert set(load_roles(override(Recipe(), mode="6"))) >= {"domain_text", "general_tasks"}


ABC = {"options": ["red", "blue", "white"]}


def read_answers(folder, answers, choices=ABC):
    """What each row of a file of questions is answered with, and how many rows cannot be used."""
    path = lines(folder / "choices.jsonl", [
        {"question": f"q{number}"} | choices | {"answer": one} for number, one in enumerate(answers)])
    rows = read_source(path, "domain_tasks", "drop")
    return [row["messages"][-1]["content"] for row in rows.table], rows.about["bad"]


@pytest.mark.parametrize(("names", "letters"), [
    ("ABC", "ABC"), ("abc", "ABC"), (("option_a", "option_b", "option_c"), "ABC"),
    (("OptionA", "OptionB", "OptionC"), "ABC"), (("Choice A", "Choice B", "Choice C"), "ABC"),
    (("opa", "opb", "opc"), "ABC"), (("option1", "option2", "option3"), "123"),
])
def test_options_may_stand_in_columns(names, letters):
    parsed = parse_row(ASK | dict(zip(names, ABC["options"], strict=True)) | {"answer": letters[1]}, "tasks")
    asked, answered = parsed.row["messages"]
    assert asked["content"] == "q\n{}. red\n{}. blue\n{}. white".format(*letters)
    assert answered["content"] == letters[1] and parsed.unused == []


@pytest.mark.parametrize(("answers", "read", "bad"), [
    (["A", "b", "(C)", "B. blue", "A, C"], ["A", "b", "(C)", "B. blue", "A, C"], 0),
    (["red", "Blue "], ["red", "Blue "], 0),
    ([0, 1, 2], ["A", "B", "C"], 0), (["0", "1", "1"], ["A", "B", "B"], 0),
    ([1, 2, 3], ["A", "B", "C"], 0), (["1", "3"], ["A", "C"], 0), ([1.0, 3.0], ["A", "C"], 0),
    (["A", "B", "C", "red", 0, 3], ["A", "B", "C"], 3),
    (["red", "blue", "white", "A", "2"], ["red", "blue", "white"], 2),
    ([0, 1, 2, 2, "A", "white"], ["A", "B", "C", "C"], 2),
    (["A", "C", "green", "7"], ["A", "C"], 2),
    (["A", "The answer is B because it is.", "I say blue, as is known.", "So it goes."],
     ["A", "The answer is B because it is.", "I say blue, as is known."], 1),
])
def test_in_which_form_answers_name_an_option_is_decided_over_the_file(tmp_path, answers, read, bad):
    assert read_answers(tmp_path, answers) == (read, bad)


@pytest.mark.parametrize("answers", [[1, 2, 1], ["1", "2"], [0, 1, 3], ["green", "grey"]])
def test_answers_whose_option_is_unclear_stop_a_run(tmp_path, answers):
    with bad_input(field="answer", where=f"{tmp_path / 'choices.jsonl'}, line 1"):
        read_answers(tmp_path, answers)


def test_texts_that_are_numbers_and_letters_that_are_numbers_are_taken_as_they_stand(tmp_path):
    assert read_answers(tmp_path, ["2", "4", "1"], {"options": ["1", "2", "4"]}) == (["2", "4", "1"], 0)
    labelled = {"choices": {"text": ["red", "blue"], "label": ["1", "2"]}}
    assert read_answers(tmp_path, ["1", "2"], labelled) == (["1", "2"], 0)
    assert read_answers(tmp_path, ["B", "A"], {"options": '["red", "blue"]'}) == (["B", "A"], 0)
    assert read_answers(tmp_path, ["B", "A"], {"options": [
        {"label": "A", "text": "red"}, {"label": "B", "text": "blue"}]}) == (["B", "A"], 0)


@pytest.mark.parametrize("text", ["<image>\nWhat is it?", "Is <image> or <image>?", "<|image_1|> So?",
                                  "<audio>", "<video> What happens?", "<start_of_image> Well?", "<img>"])
def test_a_placeholder_beside_a_field_that_nothing_reads_stops_the_row(text):
    for record in (ASK | {"question": text}, conversation(("user", text), ("assistant", "a")),
                   conversation(("user", "q"), ("assistant", text))):
        with bad_input(field="photo_file"):
            parse(record | {"photo_file": "a.png"})
        assert parse(record | {"photo_file": "", "type": "map"}) == parse(record)
    with bad_input(field="photo_file"):
        parse({"text": text, "photo_file": b"png"}, "text")


@pytest.mark.parametrize("text", ["Use <video>…</video> in a page.", "What does `<image>` mean?", "<images>",
                                  "<img src='a.png'>", "an image"])
def test_elements_of_pages_and_names_in_quotes_are_no_placeholders(text):
    assert parse(ASK | {"question": text, "id": "x"})["messages"][0]["content"] == text


@pytest.mark.parametrize("more", [{}, {"instruction": ""}, {"instruction": None}, {"instruction": " \n"}])
def test_an_input_without_an_instruction_is_the_question(more):
    parsed = parse_row({"input": "q", "output": "a"} | more, "tasks")
    assert parsed.row == {"messages": TURNS} and parsed.shape == "alpaca" and parsed.unused == []
    assert parse({"input": "q", "question": "", "answer": "a"}) == {"messages": TURNS}
    assert parse({"instruction": "q", "input": " ", "output": "a"}) == {"messages": TURNS}
    with bad_input(field="instruction"):
        parse({"instruction": "", "input": "", "output": "a"})


def test_rows_of_the_other_kind_are_refused_by_the_field_that_fits_it(tmp_path):
    (tmp_path / "a.txt").write_text("Some text.\n\nAnd more.")
    with bad_input("text", f"{tmp_path / 'a.txt'}, line 1", match="domain_text"):
        read_source(str(tmp_path / "a.txt"), "domain_tasks")
    with bad_input(field="text", match="general_text"):
        parse({"text": "t"})
    with bad_input(field="question", match="domain_tasks"):
        parse(ASK, "text")
    with bad_input(field="messages", match="domain_tasks"):
        parse({"messages": TURNS}, "text")


def test_an_answer_that_is_cut_off_in_its_thoughts_cannot_be_used():
    cut = "<think>\nso and"
    for record in (ASK | {"answer": cut}, conversation(("user", "q"), ("assistant", cut))):
        with bad_input(field="messages"):
            parse(record)
    for text in ("<think>so</think>a", "The tag <think> opens thoughts.", "so</think>a"):
        assert parse(ASK | {"answer": text})["messages"][1]["content"] == text
