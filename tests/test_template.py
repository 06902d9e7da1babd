"""Masks under every chat template that TRL ships: the answers and their end token, and only they."""

import copy

import pytest

from sftbench.data.chat_template import (
    describe_template,
    end_of_turn_ids,
    prompt_options,
    render_chat,
)
from sftbench.data.packing import collate_batch, rows_to_dataset
from sftbench.data.tokenization import IGNORE_INDEX, encode_prompt, encode_row
from sftbench.templates.rendering import DEFAULT_CHAT_TEMPLATE
from tests.conftest import bad_input
from tests.templates import ENDS, SHIPPED, longest, template_maker

SPACED = ("idefics3", "llava_next", "smolvlm")  # these put a space before the answer, which the model says
SYSTEM = {"role": "system", "content": "Be brief."}
SINGLE = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "In Lima."}]
SEVERAL = [*SINGLE, {"role": "user", "content": "And the Lima one?"},
           {"role": "assistant", "content": "assistant\n  Lima, „日本“ <b>&amp;"},
           {"role": "user", "content": "In Lima."}, {"role": "assistant", "content": "Where is it?"}]


@pytest.fixture(scope="module")
def many(tokenizer):
    """A function from a shipped template's name to a tokenizer with it."""
    return template_maker(tokenizer)


def trained(tokenizer, encoded) -> str:
    return tokenizer.decode([label for label in encoded.labels if label != IGNORE_INDEX])


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_shipped_template_trains_the_answers_and_their_ends(many, name):
    end = longest(name, ENDS)
    tokenizer = many(name)
    space = " " * any(map(name.startswith, SPACED))
    for messages in (SINGLE, SEVERAL, [SYSTEM, *SINGLE], [SYSTEM, *SEVERAL]):
        rows = encode_row(tokenizer, {"messages": messages})
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        assert "".join(trained(tokenizer, row) for row in rows) == "".join(
            space + answer + end for answer in answers)
        whole = tokenizer.decode(rows[-1].input_ids)
        assert all(message["content"] in whole for message in messages)
        assert whole.endswith(end) and whole.count("<bos>") <= 1
        prompt = encode_prompt(tokenizer, messages[:-1])
        assert rows[-1].input_ids[:len(prompt)] == prompt
        assert trained(tokenizer, rows[-1]).endswith(
            tokenizer.decode(rows[-1].input_ids[len(prompt):]))
    stop = tokenizer.convert_tokens_to_ids("<" + end.rpartition("<")[2])
    assert stop in end_of_turn_ids(tokenizer) and len(end_of_turn_ids(tokenizer)) <= 3


@pytest.mark.parametrize(("name", "count"), [("qwen2_5", 1), ("llama3", 1), ("gemma3", 1), ("phi3", 1),
                                             ("qwen3", 3), ("gptoss", 3), ("glm4moe", 3)])
def test_an_answer_is_a_row_of_its_own_where_history_is_rewritten(many, name, count):
    rows = encode_row(many(name), {"messages": SEVERAL})
    assert len(rows) == count
    tokenizer = many(name)
    for row, number in zip(rows, (2, 4, 6), strict=False):
        last = len(SEVERAL) if count == 1 else number
        prompt = encode_prompt(tokenizer, SEVERAL[:last - 1])
        assert row.input_ids[:len(prompt)] == prompt
    assert ("row of its own" in describe_template(tokenizer)) == (count > 1)


def test_thoughts_in_the_data_are_trained_and_those_of_the_template_are_not(many):
    thinking = [SINGLE[0], {"role": "assistant", "content": "<think>\nPeru?\n</think>\n\nIn Lima."}]
    for name in ("qwen3", "deepseek_r1_distill", "qwen3_5_think", "llama3"):
        tokenizer = many(name)
        row, = encode_row(tokenizer, {"messages": thinking})
        opened = render_chat(tokenizer, SINGLE[:1], add_generation_prompt=True)
        assert tokenizer.decode(row.input_ids).startswith(opened)
        answer = trained(tokenizer, row)
        assert answer.endswith("Peru?\n</think>\n\nIn Lima." + longest(name, ENDS))
        assert (opened + answer).count("<think>") == 1
        prompt = encode_prompt(tokenizer, thinking)
        assert tokenizer.decode(prompt) == opened and row.input_ids[:len(prompt)] == prompt


def test_what_reproduces_the_prompt_is_described(many):
    assert prompt_options(many("qwen3")) == {"enable_thinking": False}
    assert prompt_options(many("llama3")) == {}
    assert prompt_options(many("gptoss")) is None
    assert "as with enable_thinking=False" in describe_template(many("qwen3"))
    assert "no system message" in describe_template(many("gemma"))
    assert "no system message" not in describe_template(many("gemma3"))


def test_the_default_template_ends_answers_with_the_models_own_token(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = DEFAULT_CHAT_TEMPLATE
    row, = encode_row(other, {"messages": [SYSTEM, *SEVERAL]})
    assert trained(other, row) == "".join(
        message["content"] + "<eos>" for message in SEVERAL if message["role"] == "assistant")
    assert describe_template(other).startswith("sftbench's default")
    assert describe_template(tokenizer).startswith("the model's own")


def test_a_plain_text_end_is_no_end_token(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = ("{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}[END]\n{% endfor %}"
                           "{% if add_generation_prompt %}<assistant>{% endif %}")
    rows = encode_row(other, {"messages": SEVERAL})
    assert trained(other, rows[0]) == "In Lima.<eos>" and len(rows) == 3
    assert end_of_turn_ids(other) == [other.eos_token_id]


def test_an_end_token_is_trained_where_it_pads_too(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.pad_token = other.eos_token
    rows = encode_row(other, {"messages": SINGLE}) + encode_row(other, {"text": "The item 1 is in Oslo."})
    batch = collate_batch(list(rows_to_dataset(rows)), other.pad_token_id, packed=False)
    assert [(labels == other.eos_token_id).sum().item() for labels in batch["labels"]] == [1, 1]
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORE_INDEX).all()


@pytest.mark.parametrize(("text", "field", "words"), [
    ("{{ raise_exception('Nothing pleases me') }}", "model", "Nothing pleases me"),
    ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "model", None),
    ("{% for m in messages %}{{ m['content'] | replace('Lima', 'Oslo') }}\n{% endfor %}", "messages", "Lima"),
])
def test_a_template_that_cannot_be_masked_is_refused(tokenizer, text, field, words):
    other = copy.deepcopy(tokenizer)
    other.chat_template = text
    with bad_input(field, match=words):
        encode_row(other, {"messages": SINGLE})
