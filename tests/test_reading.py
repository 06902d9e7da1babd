"""What an answer's tokens say, under every template of TRL: a model that answers as trained is right."""

import pytest

from sftbench.data.chat_template import training_pieces
from sftbench.data.tokenization import encode_prompt
from sftbench.errors import BadInput
from sftbench.evaluation import probes
from sftbench.evaluation.probes import complete_answers
from sftbench.evaluation.rating import score_probe
from sftbench.evaluation.reading import read_answer, wanted_ids
from sftbench.evaluation.scorers import lossy_answers, score_answer, wanted_answer
from sftbench.models.loading import load_model
from tests.templates import SHIPPED, template_maker
from tests.test_tools import ANSWER, BYE, PLAIN, THANKS, THINKING, TOOL, USER, call

THOUGHTFUL = ANSWER | {"reasoning_content": "So it is."}
ROWS = {
    "an answer": [USER, ANSWER], "a second answer": [USER, ANSWER, THANKS, BYE],
    "thoughts": [USER, THOUGHTFUL], "thoughts as text": [USER, ANSWER | {
        "content": "<think>\nSo it is.\n</think>\n\nIt is sunny."}],
    "a call": PLAIN[:2], "two calls": [USER, call("Lima", "Oslo")], "an answer after a call": PLAIN[:4],
    "a call after thoughts": THINKING[:2], "thoughts after a call": THINKING,
}
CALLS = ("a call", "two calls", "a call after thoughts")
QUIET = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}]


@pytest.fixture(scope="module")
def many(tokenizer):
    """A function from a shipped template's name to a tokenizer with it."""
    return template_maker(tokenizer)


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_model_that_answers_as_it_was_trained_to_is_right(many, name):
    tokenizer, checked = many(name), 0
    for kind, messages in ROWS.items():
        row = {"messages": messages, "tools": [TOOL]}
        try:
            answer = tokenizer.decode(wanted_ids(tokenizer, row))
        except BadInput:  # a template that shows one call a turn
            assert kind == "two calls"
            continue
        wanted, said = wanted_answer(tokenizer, row), read_answer(tokenizer, encode(tokenizer, answer))
        assert score_answer(said, wanted, "exact") == 1, kind
        assert "So it is" not in said and "I must look" not in said, kind
        assert ("get_weather" in said) == (kind in CALLS) and ("Lima" in said) == (kind in CALLS), kind
        for old, new in (("sunny", "rainy"), ("Bye", "Hi"), ("Lima", "Rome")):
            answer = answer.replace(old, new)
        other = read_answer(tokenizer, encode(tokenizer, answer))
        assert score_answer(other, wanted, "exact") == 0, kind
        checked += 1
    assert checked >= len(ROWS) - 1


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_an_answer_that_was_cut_among_its_thoughts_says_nothing(many, name):
    tokenizer, row = many(name), {"messages": [USER, THOUGHTFUL]}
    thoughts, _, rest = tokenizer.decode(wanted_ids(tokenizer, row)).partition(" it is.")
    assert "So" in thoughts and "sunny" in rest
    assert read_answer(tokenizer, encode(tokenizer, thoughts), encode_prompt(tokenizer, row)) == ""


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "llama3_2", "deepseekv3", "gemma3"])
def test_an_answer_without_tools_or_thoughts_is_read_as_it_is(many, name):
    tokenizer = many(name)
    for text in ("It is sunny.", "Use the tag think.", "42", "{}"):
        row = {"messages": [USER, ANSWER | {"content": text}]}
        assert read_answer(tokenizer, encode(tokenizer, tokenizer.decode(wanted_ids(tokenizer, row)))) == text


def test_what_looks_like_a_control_token_in_an_answer_stays_in_it(many):
    tokenizer = many("qwen3")
    for text in ("Close it with <|im_end|> then.", "<eos> ends a text", "Use <|im_start|>user"):
        row = {"messages": [USER, ANSWER | {"content": text}]}
        assert read_answer(tokenizer, wanted_ids(tokenizer, row)) == wanted_answer(tokenizer, row) == text
        assert lossy_answers(tokenizer, [row]) == 0


def test_the_wanted_answer_is_the_last_even_where_it_is_not_trained(many):
    tokenizer = many("qwen3")
    untrained = {"messages": [USER, ANSWER, THANKS, call("Rome", train=False)], "tools": [TOOL]}
    assert "sunny" in training_pieces(tokenizer, untrained)[-1][-1][0]
    assert "Rome" in wanted_answer(tokenizer, untrained)


@pytest.mark.parametrize(("said", "accuracy"), [
    ('<tool_call>\n{"arguments": {"city":"Lima"}, "name": "get_weather"}\n</tool_call>', 1),
    ('<think>\nhm\n</think>\n\n<tool_call>{"name": "get_weather", "arguments": {"city": "Lima"}}'
     "</tool_call>", 1),
    ('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>', 0),
    ("It is sunny.", 0),
])
def test_a_row_that_ends_with_a_call_is_scored_by_its_values(make_model, many, monkeypatch, said, accuracy):
    tokenizer, asked = many("qwen3"), []

    def generate(model, batch, config):
        asked.append(tokenizer.decode(batch["input_ids"][0]))
        return batch["input_ids"].new_tensor([encode(tokenizer, said)])

    monkeypatch.setattr(probes, "generate_tokens", generate)
    monkeypatch.setattr(probes, "answer_beginnings", lambda *args: {})
    model = load_model(make_model(vocab_size=len(tokenizer)))
    row = {"messages": PLAIN[:2], "tools": [TOOL], "scorer": "json"}
    assert score_probe(model, tokenizer, [row], 4096, 99)["accuracy"] == accuracy
    assert "The weather." in asked[0] and "Lima?" in asked[0]


def test_answers_keep_their_thoughts_for_a_person_to_read(make_model, many, monkeypatch):
    tokenizer = many("qwen3")
    said = encode(tokenizer, "<think>\nhm\n</think>\n\nNo.<|im_end|>")
    monkeypatch.setattr(probes, "generate_tokens",
                        lambda model, batch, config: batch["input_ids"].new_tensor([said]))
    answer, = complete_answers(load_model(make_model()), tokenizer, [QUIET], 99)
    assert answer.spoken == "No." and "hm" in answer.text and not answer.cut
