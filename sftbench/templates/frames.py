"""How a chat template frames a turn: what comes before an answer or a call, and what ends it."""

import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache

from transformers import PreTrainedTokenizerBase as Tokenizer

from .rendering import STAND_IN, render_chat, render_messages, stand_ins, template_of, try_rendering
from .tool_forms import tool_forms


@dataclass(frozen=True)
class AnswerFrame:
    """How a template frames an answer: what it changes in its generation prompt, and what follows."""

    cut: int  # characters at the end of the generation prompt that a finished answer does not have
    lead: str  # what comes between the prompt without these and the answer
    after: str  # all that follows the last answer
    end: str  # what of it ends the answer; the end-of-sequence token where the template has no end of its own

    @property
    def opens(self) -> bool:
        """Whether the answer begins right where the generation prompt ends, white space apart."""
        return not self.cut and not self.lead.strip()

    def open(self, prompt: str) -> str:
        """The generation prompt, changed to what comes before an answer."""
        return prompt[:len(prompt) - self.cut] + self.lead


def answer_frame(tokenizer: Tokenizer) -> AnswerFrame:
    """How the tokenizer's template frames an answer; raises BadInput where it cannot show a conversation."""
    return _find_frame(tokenizer, template_of(tokenizer))


@lru_cache(maxsize=16)
def _find_frame(tokenizer: Tokenizer, template: str) -> AnswerFrame:
    before, _, after = render_messages(tokenizer, stand_ins("user", "assistant")).rpartition(
        STAND_IN["assistant"])
    prompt = render_messages(tokenizer, stand_ins("user"), add_generation_prompt=True)
    shared = len(os.path.commonprefix([before, prompt]))
    return AnswerFrame(cut=len(prompt) - shared, lead=before[shared:], after=after,
                       end=_end_of_turn(tokenizer, after))


def _end_of_turn(tokenizer: Tokenizer, after: str) -> str:
    """The end of an answer: the special tokens right after it, up to the end-of-sequence token."""
    match = re.match(rf"\s*(?:{_marks(tokenizer, template_of(tokenizer))})+", after)
    if not match:
        return tokenizer.eos_token
    before, eos, _ = match[0].partition(tokenizer.eos_token)
    return before + eos


@lru_cache(maxsize=16)
def _marks(tokenizer: Tokenizer, template: str) -> str:
    """A pattern of the tokens that are marks and not words."""
    marks = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    marks = sorted((mark for mark in marks if mark.split() == [mark]), key=len, reverse=True)
    return "|".join(map(re.escape, marks)) or "(?!)"


@lru_cache(maxsize=16)
def _writes_lead(tokenizer: Tokenizer, template: str) -> bool:
    """Whether the model itself writes what comes between prompt and answer, as the name of a channel.

    That comes before any answer; what belongs to thoughts opens them, or closes those that the prompt opens.
    """
    frame, (user, assistant) = answer_frame(tokenizer), stand_ins("user", "assistant")
    prompt = render_messages(tokenizer, [user], add_generation_prompt=True)
    text = try_rendering(tokenizer, [user, assistant | {"reasoning_content": "zqthought"}])
    before = text.rpartition(STAND_IN["assistant"])[0]
    closes = before[len(prompt):].lstrip().startswith("zqthought")
    return not frame.cut and before.endswith(frame.lead) and not closes


def has_tools(messages: list[dict], tools: list[dict] | None) -> bool:
    """Whether a conversation has definitions of tools, calls or results."""
    return bool(tools) or any(message.get("tool_calls") or message["role"] not in STAND_IN
                              for message in messages)


def frame_at(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None,
              prompt: str) -> tuple[AnswerFrame, str]:
    """How the template frames an answer to these messages; and the prompt as it stands before the answer.

    That differs from `prompt` where the template shows earlier turns otherwise once the answer is there, as
    gpt-oss does with the thoughts before a call.
    """
    frame = answer_frame(tokenizer)
    if not has_tools(messages, tools):
        return frame, prompt
    text = render_chat(tokenizer, [*messages, *stand_ins("assistant")], tools)
    before, _, after = text.rpartition(STAND_IN["assistant"])
    shared = len(os.path.commonprefix([before, prompt]))
    frame = replace(frame, after=after, end=_end_of_turn(tokenizer, after))
    if len(prompt) - shared > frame.cut:
        return frame, before.removesuffix(frame.lead) + prompt[len(prompt) - frame.cut:]
    return replace(frame, cut=len(prompt) - shared, lead=before[shared:]), prompt


def read_until(tokenizer: Tokenizer, frame: AnswerFrame, prompt: str, tools: bool) -> str:
    """What is read before an answer without thoughts."""
    # With tools the model chooses between an answer and a call, so the word for its choice is trained.
    if frame.opens or tools and _writes_lead(tokenizer, template_of(tokenizer)):
        return prompt
    return frame.open(prompt)


def end_calls(tokenizer: Tokenizer, frame: AnswerFrame, answer: str) -> str:
    """A turn with calls up to its end, which templates may mark otherwise than an answer's."""
    if frame.after and answer.endswith(frame.after):
        return answer.removesuffix(frame.after) + frame.end
    last = re.search(rf"({_marks(tokenizer, template_of(tokenizer))})\s*$", answer)
    # a mark that also stands between two calls closes the call, not the turn
    if last and last[1] not in (tool_forms(tokenizer).between or ""):
        return answer.rstrip()
    return answer.rstrip() + tokenizer.eos_token
