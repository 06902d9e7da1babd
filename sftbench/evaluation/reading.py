"""From an answer's tokens to what it says: without thoughts, names of channels and special tokens.

What a template puts around an answer is found by rendering stand-ins through it once. Thoughts in special
tokens must be found before these are left out: without them nothing tells thoughts from the answer.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase as Tokenizer

from ..data.chat_template import training_pieces
from ..data.tokenization import IGNORE_INDEX, encode_row
from ..errors import BadInput
from ..templates.rendering import template_of
from ..templates.tool_forms import DEFINITION

OPENING = 8  # tokens at the end of a prompt that may open thoughts
USER, THOUGHT, ANSWER = "zquser", "zqthought", "zqanswer"


@dataclass(frozen=True)
class AnswerMarks:
    """What a template puts before and after thoughts, and what a model writes before other answers."""

    thoughts: tuple[tuple[str, str], ...]  # where an answer follows, and where a call does
    leads: tuple[str, ...]  # where there are tools, and after a call of one


def answer_marks(tokenizer: Tokenizer) -> AnswerMarks:
    """The marks of the tokenizer's template; empty where it has none."""
    return _find_marks(tokenizer, template_of(tokenizer))


@lru_cache(maxsize=16)
def _find_marks(tokenizer: Tokenizer, template: str) -> AnswerMarks:
    user, answer = {"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}
    function = {"name": DEFINITION["function"]["name"], "arguments": {"zqplace": "zqvalue"}}
    call = {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "id": "call00000", "function": function}]}
    result = {"role": "tool", "content": "zqresult", "name": function["name"], "tool_call_id": "call00000"}

    def given(*messages: dict) -> str:
        with suppress(BadInput):
            row = {"messages": [user, *messages], "tools": [DEFINITION]}
            return training_pieces(tokenizer, row)[-1][-1][0]
        return ""

    leads = {given(*messages).partition(ANSWER)[0].strip() for messages in ([answer], [call, result, answer])}
    pairs = []
    for message in (answer, call):
        opens, thought, rest = given(message | {"reasoning_content": THOUGHT}).partition(THOUGHT)
        closes = rest.partition(ANSWER)[0] if message is answer else rest.removesuffix(given(call))
        for lead in leads:  # what the model writes before an answer is no part of the close
            closes = closes.strip().removesuffix(lead)
        pairs += [(opens.strip(), closes.strip())] if thought and closes.strip() else []
    return AnswerMarks(tuple(dict.fromkeys(pairs)), tuple(leads - {""}))


def wanted_ids(tokenizer: Tokenizer, row: dict) -> list[int]:
    """The tokens of the row's last message as a model gives it: with its thoughts, calls and end."""
    *before, last = row["messages"]
    last = {name: value for name, value in last.items() if name != "train"}
    encoded = encode_row(tokenizer, row | {"messages": [*before, last]})[-1]
    read = (number for number, label in enumerate(encoded.labels) if label == IGNORE_INDEX)
    return encoded.input_ids[max(read, default=-1) + 1:]


def read_answer(tokenizer: Tokenizer, ids: list[int], prompt: list[int] = ()) -> str:
    """What an answer of these tokens says; nothing where it was cut among its thoughts.

    `prompt` is what came before it, which may have opened the thoughts.
    """
    marks, text = answer_marks(tokenizer), tokenizer.decode(ids).strip()
    opened = tokenizer.decode(prompt[-OPENING:]).rstrip().endswith("<think>")
    start = spoken = _without_lead(text, marks)
    for opens, closes in marks.thoughts:
        opens = "" if opened else opens
        while closes in spoken and (spoken.startswith(opens) if opens else spoken == start):
            spoken = spoken.partition(closes)[2].strip()
    if spoken == start and (opened or any(opens and start.startswith(opens) for opens, _ in marks.thoughts)):
        return ""
    spoken = _without_lead(spoken, marks)
    if spoken == text:
        return tokenizer.decode(ids, skip_special_tokens=True).strip()
    for token in tokenizer.added_tokens_decoder.values():
        spoken = spoken.replace(token.content, "") if token.special else spoken
    return spoken.strip()


def _without_lead(text: str, marks: AnswerMarks) -> str:
    for lead in marks.leads:
        text = text.removeprefix(lead).strip()
    return text
