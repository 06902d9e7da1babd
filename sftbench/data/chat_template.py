"""Chat templates: how a model shows a conversation, and where in it an answer begins and ends. Text only.

No template is edited and none needs markers: a stand-in for an answer is rendered once, and shows how the
template frames one. What comes before the stand-in is read, the answer and its end token are trained. Where a
template changes earlier turns once more follow (Qwen3 drops their thoughts), every answer becomes a row of
its own, with the prompt that the model will see when it answers. Every template of TRL is a test case.
"""

import itertools
import os
import re
from collections.abc import Collection
from functools import lru_cache

from transformers import PreTrainedTokenizerBase as Tokenizer

from ..errors import BadInput
from ..templates.frames import answer_frame, end_calls, frame_at, has_tools, read_until
from ..templates.rendering import (
    DEFAULT_CHAT_TEMPLATE,
    STAND_IN,
    render_chat,
    render_settings,
    shows_date,
    shows_system,
    template_of,
)
from ..templates.tool_forms import (
    adapt_messages,
    describe_forms,
    split_thoughts,
    stand_in_call,
    thoughts_as_text,
    tool_forms,
)

THINKING_OFF = ({}, {"enable_thinking": False}, {"thinking": False})  # what templates call it
THINKING_ON = ({"enable_thinking": True}, {"thinking": True})


def training_pieces(tokenizer: Tokenizer, row: dict) -> list[list[tuple[str, bool]]]:
    """The row as texts for training, each in pieces that are trained or only read.

    Text is one text, trained whole. A conversation is one text with every answer and its end trained, as long
    as the template shows earlier turns as they were when they were answered; else one text an answer. Calls
    of tools are trained as answers are; definitions, results and messages with `train` false are only read.
    """
    if "text" in row:
        return [[(row["text"] + tokenizer.eos_token, True)]]
    messages, tools = adapt_messages(tokenizer, row["messages"], row.get("tools"))
    train_thoughts, texts, text = render_settings(tokenizer).train_thoughts, [], None
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("train") is False:
            continue
        prompt, answer = _split_turn(tokenizer, messages[:number + 1], tools)
        turn = messages[:number + 1], tools
        read = 0 if train_thoughts else _thoughts_length(tokenizer, turn, prompt, answer)
        pieces = [(answer[:read], False), (answer[read:], True)]
        if text is not None and prompt.startswith(text):
            texts[-1] += [(prompt[len(text):], False), *pieces]
        else:
            texts.append([(prompt, False), *pieces])
        text = prompt + answer
    return [[piece for piece in pieces if piece[0]] for pieces in texts] or [
        [(render_chat(tokenizer, messages, tools), False)]]


def _split_turn(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None) -> tuple[str, str]:
    """What is read before the last message, and that message, an answer, as shown and with its end."""
    content, native = messages[-1]["content"], messages[-1].get("reasoning_content", "").strip()
    thoughts, text = native or split_thoughts(content)[0], render_chat(tokenizer, messages, tools)
    prompt = _prompt_of(tokenizer, messages[:-1], tools, text if thoughts in text else "<think>",
                        THINKING_ON if thoughts else ())
    if messages[-1].get("tool_calls"):
        return _split_calls(tokenizer, messages, tools, prompt, text)
    frame, asked = frame_at(tokenizer, messages[:-1], tools, prompt)
    if asked != prompt:
        text = prompt + text[len(asked):]
    if native:
        shown = _between(text, prompt, frame.after)
        if shown is None or native not in shown or content.strip() not in shown:
            return _split_turn(tokenizer, [*messages[:-1], thoughts_as_text(messages[-1])], tools)
        return prompt, shown + frame.end
    opened, start = frame.open(prompt), read_until(tokenizer, frame, prompt, has_tools(messages, tools))
    shown = _between(text, opened, frame.after)
    unchanged = shown is not None and (shown.strip() == content.strip() or "</think>" in content)
    if unchanged and thoughts in shown:
        # Empty thoughts that the template puts before an answer (`frame.lead`) are read, not trained, so a
        # reasoning model is scored on its answer. TRL's own templates train them.
        return start, opened[len(start):] + shown + frame.end
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


def _thoughts_length(tokenizer: Tokenizer, turn: tuple[list[dict], list[dict] | None], prompt: str,
                     answer: str) -> int:
    """The number of characters with which an answer begins that are its thoughts, up to words or calls."""
    (*before, message), tools = turn
    content, native = message["content"], message.get("reasoning_content", "").strip()
    if not (thoughts := native or split_thoughts(content)[0]):
        return 0
    end, forms = answer.rfind(thoughts) + len(thoughts), tool_forms(tokenizer)
    if native and message.get("tool_calls") and not (forms.both and forms.words_first):
        bare = render_chat(tokenizer, [*before, {name: value for name, value in message.items()
                                                 if name != "reasoning_content"}], tools)
        shown = render_chat(tokenizer, [*before, message], tools)
        same = len(os.path.commonprefix([bare[::-1], shown[::-1]]))
        return max(end, len(shown) - same - len(prompt))
    opening = "" if native else content.partition("</think>")[0] + "</think>\n\n"
    text = render_chat(
        tokenizer, [*before, message | {"content": opening + STAND_IN["assistant"]}], tools)
    speaks = len(text.rpartition(STAND_IN["assistant"])[0]) - len(prompt)
    if speaks >= end and text.startswith(prompt + answer[:speaks]):
        return speaks
    return end + re.match(r"\s*(?:</think>)?\s*", answer[end:]).end()


def _prompt_of(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None, text: str,
               options: tuple[dict, ...]) -> str:
    """The prompt to these messages; where `text` begins otherwise, as it is under options, if it does so.

    For a text that is but `<think>`, as the template shows no thoughts, the prompt that opens them.
    """
    prompts = (render_chat(tokenizer, messages, tools, add_generation_prompt=True, **chosen)
               for chosen in ({}, *options))
    first = next(prompts)
    return next((prompt for prompt in itertools.chain([first], prompts)
                 if text.startswith(prompt) or prompt.rstrip().endswith(text)), first)


def _split_calls(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None, prompt: str,
                 text: str) -> tuple[str, str]:
    """As `_split_turn`, for a turn with calls of tools."""
    frame, _ = frame_at(tokenizer, messages[:-1], tools, prompt)
    message, start = messages[-1], read_until(tokenizer, frame, prompt, True)
    thoughts = message.get("reasoning_content") or split_thoughts(message["content"])[0]
    if thoughts or not text.startswith(start):
        start = prompt
    answer = text[len(start):]
    names = [call["function"]["name"] for call in message["tool_calls"]]
    if not text.startswith(start) or not all(name in answer for name in names):
        raise BadInput("the model's chat template does not show this call where it answers: "
                       f"{', '.join(names):.80}", field="messages[].tool_calls")
    return start, end_calls(tokenizer, frame, answer)


@lru_cache(maxsize=16)
def _whole_starts(tokenizer: Tokenizer, template: str) -> str:
    """With which beginnings of answers a conversation's tokens are not those of its pieces.

    A server tokenises the prompt with all earlier turns as one text. Where the template puts an ordinary
    character before an answer, tokens may cross that border: "all" where it is so with words, "spaces" where
    only with white space at the beginning of an answer, else "".
    """
    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def differs(start: str) -> bool:
        turns = [{"role": role, "content": start} for role in ("user", "assistant") * 3]
        try:
            texts = training_pieces(tokenizer, {"messages": turns})
        except BadInput:  # a row that cannot be shown is refused where it stands
            return False
        for text in texts:
            pieces = [piece for piece, _ in text]
            last = len(pieces) - start[:1].isspace()  # the last answer's own start is not the prompt's
            ids = [encode("".join(pieces[:count])) for count in range(1, last + 1)]
            if any(whole != [token for piece in pieces[:count] for token in encode(piece)]
                   for count, whole in enumerate(ids, 1)):
                return True
        return False

    if any(map(differs, ("In Lima", "東京", "7", "(a)", "-"))):
        return "all"
    return "spaces" if any(map(differs, (" a", "\na", "\n\na"))) else ""


def is_tokenised_whole(tokenizer: Tokenizer, row: dict) -> bool:
    """Whether each piece of the row is tokenised together with all before it, and not by itself."""
    starts = _whole_starts(tokenizer, template_of(tokenizer)) if "messages" in row else ""
    return starts == "all" or starts == "spaces" and any(
        message["role"] == "assistant" and message["content"][:1].isspace() for message in row["messages"])


def _between(text: str, before: str, after: str) -> str | None:
    if text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after):
        return text[len(before):len(text) - len(after)]
    return None


def render_prompt(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None = None) -> str:
    """What the model reads before it answers: exactly what came before an answer in training.

    Where the template opens an answer with thoughts that the data does not have, the prompt has them, empty.
    A conversation may end with the wanted answer; of that only whether it has thoughts is used.
    """
    messages, tools = adapt_messages(tokenizer, messages, tools)
    if messages[-1]["role"] == "assistant":
        return _split_turn(tokenizer, messages, tools)[0]
    prompt = render_chat(tokenizer, messages, tools, add_generation_prompt=True)
    return read_until(tokenizer, frame_at(tokenizer, messages, tools, prompt)[0], prompt,
                  has_tools(messages, tools))


def end_of_turn_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens at which a turn is over: the tokenizer's end token, and those training ends turns with."""
    ends = {answer_frame(tokenizer).end, _call_end(tokenizer, template_of(tokenizer))} - {""}
    return sorted({tokenizer.eos_token_id, *(
        tokenizer(end, add_special_tokens=False)["input_ids"][-1] for end in ends)})


@lru_cache(maxsize=16)
def _call_end(tokenizer: Tokenizer, template: str) -> str:
    """The text that ends with a call and the end of its turn; empty where the template shows no calls."""
    messages = stand_in_call(tool_forms(tokenizer))
    return training_pieces(tokenizer, {"messages": messages})[-1][-1][0] if messages else ""


def prompt_options(tokenizer: Tokenizer) -> dict | None:
    """The options under which the template itself gives the prompt of training; None if there are none."""
    messages = [{"role": "user", "content": "a"}]
    wanted = render_prompt(tokenizer, messages)
    return next((options for options in THINKING_OFF
                 if render_chat(tokenizer, messages, add_generation_prompt=True, **options) == wanted), None)


def describe_template(tokenizer: Tokenizer, uses: Collection[str] = ("tools", "thoughts")) -> str:
    """What a user must know of the template, in one line: whose it is, where answers end, what it does.

    `uses` are those of `tools` and `thoughts` that the data has.
    """
    frame, default = answer_frame(tokenizer), template_of(tokenizer).endswith(DEFAULT_CHAT_TEMPLATE)
    notes = ["sftbench's default, as the model has none" if default else "the model's own",
             f"answers end with {frame.end!r}"]
    if not frame.opens:
        how = f"after {frame.lead!r}" if frame.lead else "without the prompt's opened thoughts"
        options = [f"{name}={value}" for name, value in (prompt_options(tokenizer) or {}).items()]
        notes.append(f"answers begin {how}" + f", as with {', '.join(options)}" * bool(options))
    turns = [{"role": role, "content": text} for text in "ab" for role in ("user", "assistant")]
    if len(training_pieces(tokenizer, {"messages": turns})) > 1:
        notes.append("it shows earlier turns otherwise, so each answer of a conversation is a row of its own")
    elif _whole_starts(tokenizer, template_of(tokenizer)) == "all":
        notes.append("tokens depend on what stands before them, so answers are tokenised after their prompts")
    if not shows_system(tokenizer):
        notes.append("it knows no system message, so that opens the first question")
    if shows_date(tokenizer):
        notes.append(f"it shows the date, here {render_settings(tokenizer).date or 'of the day'}")
    notes += describe_forms(tokenizer, uses)
    if "thoughts" in uses and not render_settings(tokenizer).train_thoughts:
        notes.append("thoughts are read, not trained")
    return "; ".join(notes)
