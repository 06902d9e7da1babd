"""Text of the data that looks like control tokens (`<s>`, `<|im_end|>`) is text: marked, and encoded as such.

Only the template's control tokens become tokens. transformers (5.23) has the same under
`sanitize_control_tokens`, but cuts the text at the marks, so that it gets other tokens than text has; and it
renders and encodes in one step, which leaves no place for a mask.
"""

import json
import re
from functools import lru_cache

from transformers import PreTrainedTokenizerBase as Tokenizer

from ..errors import BadInput
from .frames import answer_frame
from .rendering import template_of

MARK = "\ufdd0"  # before what is text; no character has this code point
# how families write their control tokens: Llama, Gemma, Mistral, and ChatML, Llama 3, Phi, DeepSeek, …
FAMILY_TOKENS = re.compile(r"</s>|<eos>|<(?:start|end)_of_turn>|\[/?INST\]|<[|｜][^\s<>|｜]{1,40}[|｜]>")
THOUGHT_TAGS = ("<think>", "</think>")  # of an answer's thoughts, special in some tokenizers


@lru_cache(maxsize=16)
def _pattern(tokenizer: Tokenizer, template: str, but: tuple[str, ...] = ()) -> re.Pattern:
    """A pattern of all special tokens."""
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = sorted((tokens | {*tokenizer.all_special_tokens}) - {*but}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def mark_row(tokenizer: Tokenizer, row: dict) -> dict:
    """The row with a mark before all that looks like a control token; the row itself where nothing does.

    What a row says to begin and to end with is no such text: a text's own beginning- and end-of-sequence
    token, an answer's end of turn. Thoughts in an answer stay in their tags.
    """
    pattern = _pattern(tokenizer, template_of(tokenizer))
    if "text" in row:
        return {"text": _mark_text(tokenizer, pattern, row["text"])} if pattern.search(row["text"]) else row
    if not _has_match(pattern, row):
        return row
    messages = [_mark_message(tokenizer, pattern, message) for message in row["messages"]]
    return row | {"messages": messages} | (
        {"tools": _mark(pattern, row["tools"])} if row.get("tools") else {})


def _has_match(pattern: re.Pattern, row: dict) -> bool:
    return any(pattern.search(message["content"]) or len(message) > 2 and _mark(pattern, message) != message
               for message in row["messages"]) or bool(
                   row.get("tools") and _mark(pattern, row["tools"]) != row["tools"])


def has_marks(row: dict) -> bool:
    """Whether a row that `mark_row` gave has text that looks like a control token."""
    return MARK in json.dumps(row, ensure_ascii=False)


def _mark_text(tokenizer: Tokenizer, pattern: re.Pattern, text: str) -> str:
    bos = tokenizer.bos_token or ""
    if not text.startswith(bos):
        bos = ""
    body, ended = text[len(bos):], text.rstrip().endswith(tokenizer.eos_token)
    if ended and body.strip() != tokenizer.eos_token:
        body = body.rstrip().removesuffix(tokenizer.eos_token)
    return bos + _mark(pattern, body)


def _mark_message(tokenizer: Tokenizer, pattern: re.Pattern, message: dict) -> dict:
    if message["role"] != "assistant":
        return {name: value if name == "role" else _mark(pattern, value) for name, value in message.items()}
    content, pattern = message["content"], _pattern(tokenizer, template_of(tokenizer), THOUGHT_TAGS)
    for end in (answer_frame(tokenizer).end.strip(), tokenizer.eos_token):
        if content.rstrip().endswith(end) and content.strip() != end:
            content = content.rstrip().removesuffix(end)
    return {name: value if name in ("role", "train") else _mark(pattern, value)
            for name, value in (message | {"content": content}).items()}


def _mark(pattern: re.Pattern, value):
    """The value with a mark before every match in its texts, the names of fields included."""
    if isinstance(value, str):
        return pattern.sub(rf"{MARK}\g<0>", value)
    if isinstance(value, dict):
        return {_mark(pattern, name): _mark(pattern, entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_mark(pattern, entry) for entry in value]
    return value


def encode_marked(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a rendered text: what is marked as text, the template's control tokens as tokens.

    Raises BadInput where the tokenizer makes a control token of the text all the same.
    """
    pattern, parts, end = _pattern(tokenizer, template_of(tokenizer)), [("", False)], 0
    for match in pattern.finditer(text):
        if text[match.start() - 1:match.start()] != MARK:  # a control token of the template
            parts += [(text[end:match.start()], False), (match[0], True)]
            end = match.end()
    parts.append((text[end:], False))
    flags = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    ids, plain = [], ""  # what has no mark is encoded together
    for number, (part, is_token) in enumerate(parts):
        if is_token or MARK not in part:
            plain += part
            continue
        if (before := flags.get(parts[number - 1][0])) and before.rstrip:
            part = part.lstrip()
        if number + 1 < len(parts) and (after := flags.get(parts[number + 1][0])) and after.lstrip:
            part = part.rstrip()
        ids += tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else []
        ids += _encode_text(tokenizer, part, first=not ids)
        plain = ""
    return ids + (tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else [])


def _encode_text(tokenizer: Tokenizer, text: str, first: bool) -> list[int]:
    """The tokens of marked text, which is the first of its text or comes after a control token."""
    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    clean = text.replace(MARK, "")
    line = encode("\n")
    # Some tokenizers put a space before the first word of a text, and after a control token none.
    ids = encode("\n" + clean) if not first and _first_differs(tokenizer, template_of(tokenizer)) else []
    ids = ids[len(line):] if ids and ids[:len(line)] == line else encode(clean)
    for match in _pattern(tokenizer, template_of(tokenizer)).finditer(clean):
        if tokenizer.convert_tokens_to_ids(match[0]) in ids:
            raise BadInput(f"the tokenizer takes {match[0]!r} for a control token in any text; take it out "
                           "of the row", field="text")
    return ids


@lru_cache(maxsize=16)
def _first_differs(tokenizer: Tokenizer, template: str) -> bool:
    """Whether a word has other tokens at the start of a text than after a control token."""
    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return encode(tokenizer.eos_token + "a")[1:] != encode("a")
