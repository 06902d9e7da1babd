"""What the model really sees: a row token by token with its mask."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from transformers import PreTrainedTokenizerBase

from ..data.chat_template import end_of_turn_ids
from ..data.tokenization import IGNORE_INDEX, EncodedRow, encode_row
from .html import HtmlText, escape_html, make_visible
from .text_table import WIDTH, plural

MAX_TOKENS_SHOWN = 400  # tokens of a row that are shown
READ, TRAINED = "#f2f2f2", "#cfe6f5"  # backgrounds: grey, and a pale blue
INK, SPECIAL = "#222222", "#7a3b00"  # ordinary tokens, and brown for special ones


@dataclass(frozen=True)
class TokenView:
    """One token: whether training predicts it, and in which block it falls where its text is cut."""

    id: int
    text: str
    trained: bool
    special: bool
    piece: int


@dataclass(frozen=True)
class RowView:
    """A row as the model sees it."""

    tokens: list[TokenView]
    trained: int
    turns: int  # runs of trained tokens, one for each answer
    bos: int  # number of beginning-of-sequence tokens
    end: str | None  # the last trained token's text, if that token ends an answer
    fate: str  # what becomes of the row


def view_row(tokenizer: PreTrainedTokenizerBase, row: dict, max_length: int | None = None) -> list[RowView]:
    """A view for each text that the row gives; with some templates that is one for each answer."""
    return [_view(tokenizer, encoded, max_length, "text" in row) for encoded in encode_row(tokenizer, row)]


def _view(tokenizer: PreTrainedTokenizerBase, encoded: EncodedRow, max_length: int | None,
          is_text: bool) -> RowView:
    size, special = len(encoded.input_ids), set(tokenizer.all_special_ids)
    room = max_length or size
    # labels as they are trained: the first token of a row or piece has none (`EncodedRow.cut`)
    pieces = [encoded.cut(start, room) for start in range(0, size, room)] if is_text else [encoded.cut()]
    labels = [(label, number) for number, piece in enumerate(pieces) for label in piece.labels]
    texts = token_texts(tokenizer, encoded.input_ids)
    tokens = [TokenView(token, text, label != IGNORE_INDEX, token in special, number)
              for token, text, (label, number) in zip(encoded.input_ids, texts, labels, strict=True)]
    trained = [token for token in tokens if token.trained]
    if not is_text and size > room:
        fate = f"dropped: longer than max_length {room}"
    elif not trained:
        fate = "dropped: nothing to train"
    else:
        fate = f"cut into {len(pieces)} pieces of at most {room} tokens" if len(pieces) > 1 else "nothing cut"
    ends = trained and trained[-1].id in end_of_turn_ids(tokenizer)
    turns = 1 if is_text else sum(is_trained for is_trained, _ in itertools.groupby(
        token.trained for token in tokens))
    return RowView(tokens, len(trained), turns, encoded.input_ids.count(tokenizer.bos_token_id),
                   trained[-1].text if ends else None, fate)


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text that each token adds; a part of a character is shown by its name in the vocabulary."""
    texts = []
    for before, token in itertools.pairwise([None, *ids]):
        text = tokenizer.decode([token])
        if before is not None:  # some tokenizers drop the space of a first word
            pair, first = tokenizer.decode([before, token]), tokenizer.decode([before])
            text = pair[len(first):] if pair.startswith(first) and len(pair) > len(first) else text
        texts.append(text if text and "\ufffd" not in text else tokenizer.convert_ids_to_tokens(token))
    return texts


def summarise_view(view: RowView) -> str:
    """A row in one line: its tokens, the trained ones, how it begins and ends, what becomes of it."""
    end = f"end {make_visible(view.end)} trained" if view.end else "no end token trained"
    size, where = plural(len(view.tokens), "token"), f" in {view.turns} turns" * (view.turns > 1)
    return f"{size}, {view.trained:,} trained{where}; BOS {view.bos}; {end}; {view.fate}"


def format_view(view: RowView, indent: int = 6) -> HtmlText:
    """The row's tokens: what is trained is between « and », ‖ is where a text is cut.

    As text it has a bar between tokens and line breaks only there; in a notebook what is trained is bold on
    blue, special tokens are brown, and everything is escaped. Of a row of more than MAX_TOKENS_SHOWN tokens
    the middle is left out: answers are at the end.
    """
    words, markup, half = [], [], MAX_TOKENS_SHOWN // 2
    more = max(0, len(view.tokens) - MAX_TOKENS_SHOWN)
    for tokens in [view.tokens[:half], view.tokens[-half:]] if more else [view.tokens]:
        gap = [f" … ({plural(more, 'token')} more) … "] * bool(words)
        words += gap + _mark(tokens, [make_visible(token.text) for token in tokens], "|", "‖", ("«", "»"))
        markup += gap + _mark(tokens, map(_token_html, tokens), "",
                              '<span style="color:#a33b00"> ‖ </span>', ("<b>«", "»</b>"))
    return HtmlText(_fold(words, indent), (
        '<div style="font-family:monospace;font-size:12px;line-height:1.7;margin:2px 0 8px 3em">'
        f"{''.join(markup)}</div>"))


def _mark(tokens: list[TokenView], words: Iterable[str], bar: str, cut: str,
          trained_marks: tuple[str, str]) -> list[str]:
    """The tokens' words with marks: between two, where a text is cut, and around what is trained."""
    (opening, closing), marked = trained_marks, []
    for _, part in itertools.groupby(zip(tokens, words, strict=True), lambda pair: pair[0].piece):
        separator = cut * bool(marked)
        for trained, run in itertools.groupby(part, lambda pair: pair[0].trained):
            first, *rest = (word for _, word in run)
            marked += [f"{separator}{opening * trained}{first}", *(f"{bar}{word}" for word in rest)]
            marked[-1] += closing * trained
            separator = ""
    return marked


def _fold(words: list[str], indent: int) -> str:
    """The words as lines of at most WIDTH columns, broken between words only, unless a word is longer."""
    lines, used = [""], 0
    for word in itertools.chain.from_iterable(chop_cells(word, WIDTH - indent) for word in words):
        used += cell_len(word)
        if used > WIDTH - indent:
            lines.append("")
            used = cell_len(word)
        lines[-1] += word
    return "\n".join(" " * indent + line for line in lines)


def _token_html(token: TokenView) -> str:
    ground, ink = TRAINED if token.trained else READ, SPECIAL if token.special else INK
    word = escape_html(token.text).replace("↵", "↵<br>")
    return (f'<span style="background:{ground};color:{ink};border-right:1px solid #fff;white-space:pre-wrap" '
            f'title="{token.id}">{word}</span>')
