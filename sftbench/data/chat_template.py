"""Chat templates: how a model shows a conversation, and where in it an answer begins and ends. Text only.

No template is edited and none needs markers: a stand-in for an answer is rendered once, and shows how the
template frames one. What comes before the stand-in is read, the answer and its end token are trained. Where a
template changes earlier turns once more follow (Qwen3 drops their thoughts), every answer becomes a row of
its own, with the prompt that the model will see when it answers. Every template of TRL is a test case.
"""

import os
import re
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase as Tokenizer

from ..errors import BadInput

# For base models that have no template of their own: plain words, so that every tokenizer has the tokens, and
# the end-of-sequence token, which is the one token of a base model that already means an end.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
STAND_IN = {role: f"\u2042{role}\u2042" for role in ("system", "user", "assistant")}
THINKING_OFF = ({}, {"enable_thinking": False}, {"thinking": False})  # what templates call it


def default_template(tokenizer: Tokenizer) -> str:
    """The default template, with the beginning-of-sequence token where the tokenizer adds one to text."""
    return "{{ bos_token }}" * adds_bos(tokenizer) + DEFAULT_CHAT_TEMPLATE


def adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer adds a beginning-of-sequence token to text; templates bring their own."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("")["input_ids"][:1] == [bos]


@dataclass(frozen=True)
class AnswerFrame:
    """How a template frames an answer: what it changes in its generation prompt, and what follows."""

    parts: bool  # contents are lists of parts, as templates of models for pictures expect them
    fold: bool  # it knows no system message, so that opens the first user message
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
    return _find_frame(tokenizer, tokenizer.get_chat_template())


@lru_cache(maxsize=16)
def _find_frame(tokenizer: Tokenizer, template: str) -> AnswerFrame:
    system, user, assistant = ({"role": role, "content": text} for role, text in STAND_IN.items())
    for parts in (False, True):
        text, fault = _try(tokenizer, [user, assistant], parts)
        if all(STAND_IN[role] in text for role in ("user", "assistant")):
            break
    else:
        raise BadInput("the model's chat template cannot show a question and its answer"
                       f"{f': {fault}' if fault else ''}; take a model with a template for text",
                       field="model")
    fold = STAND_IN["system"] not in _try(tokenizer, [system, user, assistant], parts)[0]
    before, _, after = text.rpartition(STAND_IN["assistant"])
    prompt = _render(tokenizer, [user], parts, add_generation_prompt=True)
    shared = len(os.path.commonprefix([before, prompt]))
    return AnswerFrame(parts, fold, cut=len(prompt) - shared, lead=before[shared:], after=after,
                       end=_end_of_turn(tokenizer, after))


def _end_of_turn(tokenizer: Tokenizer, after: str) -> str:
    """The end of an answer: the special tokens right after it, up to the end-of-sequence token."""
    marks = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    marks = sorted((mark for mark in marks if mark.split() == [mark]), key=len, reverse=True)
    match = re.match(rf"\s*(?:{'|'.join(map(re.escape, marks))})+", after) if marks else None
    if not match:
        return tokenizer.eos_token
    before, eos, _ = match[0].partition(tokenizer.eos_token)
    return before + eos


def _render(tokenizer: Tokenizer, messages: list[dict], parts: bool, **options) -> str:
    if parts:
        messages = [message | {"content": [{"type": "text", "text": message["content"]}]}
                    for message in messages]
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def _try(tokenizer: Tokenizer, messages: list[dict], parts: bool) -> tuple[str, str]:
    """What the template shows and why it could not; a template may raise whatever its expressions raise."""
    try:
        return _render(tokenizer, messages, parts), ""
    except Exception as error:
        return "", str(error)


def render_chat(tokenizer: Tokenizer, messages: list[dict], **options) -> str:
    """Messages through the model's own chat template.

    A system message goes before the first user message's text where the template knows none. `options` are
    `add_generation_prompt` (opens the assistant's turn) and the template's own, such as `enable_thinking`.
    """
    frame = answer_frame(tokenizer)
    if frame.fold and messages[0]["role"] == "system":
        system, user, *rest = messages
        messages = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]
    try:
        return _render(tokenizer, messages, frame.parts, **options)
    except Exception as error:
        raise BadInput(f"the model's chat template refuses this conversation: {error}",
                       field="messages") from error


def training_pieces(tokenizer: Tokenizer, row: dict) -> list[list[tuple[str, bool]]]:
    """The row as texts for training, each in pieces that are trained or only read.

    Text is one text, trained whole. A conversation is one text with every answer and its end trained, as long
    as the template shows earlier turns as they were when they were answered; else one text an answer.
    """
    if "text" in row:
        return [[(row["text"] + tokenizer.eos_token, True)]]
    texts, text = [], None
    for number, message in enumerate(row["messages"]):
        if message["role"] != "assistant":
            continue
        prompt, answer = _split_turn(tokenizer, row["messages"][:number + 1])
        if text is not None and prompt.startswith(text):
            texts[-1] += [(prompt[len(text):], False), (answer, True)]
        else:
            texts.append([(prompt, False), (answer, True)])
        text = prompt + answer
    return [[piece for piece in pieces if piece[0]] for pieces in texts]


def _split_turn(tokenizer: Tokenizer, messages: list[dict]) -> tuple[str, str]:
    """What is read before the last message, and that message, an answer, as shown and with its end."""
    frame, content = answer_frame(tokenizer), messages[-1]["content"]
    prompt = render_chat(tokenizer, messages[:-1], add_generation_prompt=True)
    text = render_chat(tokenizer, messages)
    opened, thoughts = frame.open(prompt), _thoughts(content)
    shown = _between(text, opened, frame.after)
    unchanged = shown is not None and (shown.strip() == content.strip() or "</think>" in content)
    if unchanged and thoughts in shown:
        # Empty thoughts that the template puts before an answer (`frame.lead`) are read, not trained, so a
        # reasoning model is scored on its answer. TRL's own templates train them.
        return (prompt, frame.lead + shown + frame.end) if frame.opens else (opened, shown + frame.end)
    if not thoughts:
        raise BadInput("the model's chat template changes this answer, or frames it unlike others, so it is "
                       f"unclear what to train: {content!r:.80}", field="messages")
    # thoughts of the data are part of the answer, so the prompt is the template's own
    shown = _between(text, prompt, frame.after)
    if shown is None or thoughts not in shown:
        shown = content.lstrip()
        if prompt.rstrip().endswith("<think>"):
            shown = shown.removeprefix("<think>").lstrip()
    return prompt, shown + frame.end


def _between(text: str, before: str, after: str) -> str | None:
    if text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after):
        return text[len(before):len(text) - len(after)]
    return None


def _thoughts(content: str) -> str:
    """What an answer thinks before it speaks, as reasoning models write it; empty where it does not."""
    before, closed, _ = content.partition("</think>")
    return before.rpartition("<think>")[2].strip() if closed else ""


def render_prompt(tokenizer: Tokenizer, messages: list[dict]) -> str:
    """What the model reads before it answers: exactly what came before an answer in training.

    Where the template opens an answer with thoughts that the data does not have, the prompt has them, empty.
    A conversation may end with the wanted answer; of that only whether it has thoughts is used.
    """
    if messages[-1]["role"] == "assistant":
        return _split_turn(tokenizer, messages)[0]
    frame, prompt = answer_frame(tokenizer), render_chat(tokenizer, messages, add_generation_prompt=True)
    return prompt if frame.opens else frame.open(prompt)


def end_of_turn_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens at which an answer is over: the tokenizer's end token, and the one training ends with."""
    end = tokenizer(answer_frame(tokenizer).end, add_special_tokens=False)["input_ids"]
    return sorted({tokenizer.eos_token_id, end[-1]})


def prompt_options(tokenizer: Tokenizer) -> dict | None:
    """The options under which the template itself gives the prompt of training; None if there are none."""
    messages = [{"role": "user", "content": "a"}]
    wanted = render_prompt(tokenizer, messages)
    return next((options for options in THINKING_OFF
                 if render_chat(tokenizer, messages, add_generation_prompt=True, **options) == wanted), None)


def describe_template(tokenizer: Tokenizer) -> str:
    """What a user must know of the template, in one line: whose it is, where answers end, what it does."""
    frame, default = answer_frame(tokenizer), tokenizer.get_chat_template().endswith(DEFAULT_CHAT_TEMPLATE)
    notes = ["sftbench's default, as the model has none" if default else "the model's own",
             f"answers end with {frame.end!r}"]
    if not frame.opens:
        how = f"after {frame.lead!r}" if frame.lead else "without the prompt's opened thoughts"
        options = [f"{name}={value}" for name, value in (prompt_options(tokenizer) or {}).items()]
        notes.append(f"answers begin {how}" + f", as with {', '.join(options)}" * bool(options))
    turns = [{"role": role, "content": text} for text in "ab" for role in ("user", "assistant")]
    if len(training_pieces(tokenizer, {"messages": turns})) > 1:
        notes.append("it shows earlier turns otherwise, so each answer of a conversation is a row of its own")
    if frame.fold:
        notes.append("it knows no system message, so that opens the first question")
    return "; ".join(notes)
