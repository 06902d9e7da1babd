"""What the model really sees: a row token by token, with its mask, as plain data, as text and as HTML."""

import itertools
import textwrap

from transformers import PreTrainedTokenizerBase

from ..data.chat_template import end_of_turn_ids
from ..data.tokenization import IGNORE_INDEX, EncodedRow, encode_row
from .html import escape_html, make_visible

TEXT_WIDTH = 100
MAX_TOKENS_SHOWN = 400  # tokens of a row that are shown
READ, TRAINED = "#f2f2f2", "#cfe6f5"  # grounds: grey, and a pale blue
INK, SPECIAL = "#222222", "#7a3b00"  # ordinary tokens, and brown for special ones


def view_row(tokenizer: PreTrainedTokenizerBase, row: dict, max_length: int | None = None) -> list[dict]:
    """A row as the model sees it: a dict for each text that is made of it (several where `template` says so).

    Each has `tokens`, a list of dicts with `id`, `text`, `trained` (whether it is predicted in training),
    `special`, and `piece`, the block it falls into where a text is cut at `max_length`; `trained` tokens;
    `bos`, how many beginning-of-sequence tokens it has; `end`, the last trained token's text, if it is an
    end-of-answer token; and `fate`: what becomes of it.
    """
    return [_seen(tokenizer, encoded, max_length, "text" in row)
            for encoded in encode_row(tokenizer, row)]


def _seen(tokenizer: PreTrainedTokenizerBase, encoded: EncodedRow, max_length: int | None,
          text: bool) -> dict:
    size, special, bos = len(encoded.input_ids), set(tokenizer.all_special_ids), tokenizer.bos_token_id
    most = max_length or size
    words = token_texts(tokenizer, encoded.input_ids)
    tokens = [{"id": token, "text": word, "special": token in special, "piece": number // most if text else 0,
               # the first token of a block's row has nothing before it that could predict it
               "trained": label != IGNORE_INDEX and (number % most if text else number) > 0}
              for number, (token, label, word) in enumerate(
                  zip(encoded.input_ids, encoded.labels, words, strict=True))]
    trained = [token for token in tokens if token["trained"]]
    if not text and size > most:
        fate = f"dropped: longer than max_length {most}"
    elif not trained:
        fate = "dropped: nothing to train"
    else:
        pieces = tokens[-1]["piece"] + 1
        fate = f"cut into {pieces} pieces of at most {most} tokens" if pieces > 1 else "nothing cut"
    ends = trained and trained[-1]["id"] in end_of_turn_ids(tokenizer)
    return {"tokens": tokens, "trained": len(trained), "fate": fate,
            "bos": 0 if bos is None else encoded.input_ids.count(bos),
            "end": trained[-1]["text"] if ends else None}


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text that each token adds; a part of a character is shown by its name in the vocabulary."""
    found = []
    for before, token in itertools.pairwise([None, *ids]):
        alone = tokenizer.decode([token])
        if before is not None:  # some tokenizers drop the space of a first word
            pair, first = tokenizer.decode([before, token]), tokenizer.decode([before])
            alone = pair[len(first):] if pair.startswith(first) and len(pair) > len(first) else alone
        found.append(alone if alone and "\ufffd" not in alone else tokenizer.convert_ids_to_tokens(token))
    return found


def summarise_view(one: dict) -> str:
    """What to know of a row in one line."""
    end = f"end {make_visible(one['end'])} trained" if one["end"] else "no end token trained"
    return (f"{len(one['tokens']):,} tokens, {one['trained']:,} trained; BOS {one['bos']}; {end}; "
            f"{one['fate']}")


def view_as_text(one: dict) -> str:
    """The row for a terminal: a bar between tokens, «…» round what is trained, ‖ where a text is cut."""
    shown = ""
    for (piece, trained), run in itertools.groupby(
            one["tokens"][:MAX_TOKENS_SHOWN], key=lambda token: (token["piece"], token["trained"])):
        if piece > shown.count("‖"):
            shown += "‖"
        words = "|".join(make_visible(token["text"]) for token in run)
        shown += f"«{words}»" if trained else ("|" if shown and shown[-1] not in "‖»" else "") + words
    left = len(one["tokens"]) - MAX_TOKENS_SHOWN
    shown += f" … ({left:,} tokens more)" if left > 0 else ""
    return "\n".join(textwrap.wrap(shown, TEXT_WIDTH - 6, drop_whitespace=False, break_on_hyphens=False))


def view_as_html(one: dict) -> str:
    """The same for a notebook: what is trained bold on blue, special tokens brown, everything escaped."""
    shown, last = [], 0
    for (piece, trained), run in itertools.groupby(
            one["tokens"][:MAX_TOKENS_SHOWN], key=lambda token: (token["piece"], token["trained"])):
        shown.append('<span style="color:#a33b00"> ‖ </span>' * (piece - last))
        last, words = piece, "".join(map(_token_html, run))
        shown.append(f"<b>«{words}»</b>" if trained else words)
    left = len(one["tokens"]) - MAX_TOKENS_SHOWN
    more = f" … ({left:,} tokens more)" if left > 0 else ""
    return (f'<div style="font-family:monospace;font-size:12px;line-height:1.7;margin:2px 0 8px 3em">'
            f'{"".join(shown)}{more}</div>')


def _token_html(token: dict) -> str:
    ground, ink = TRAINED if token["trained"] else READ, SPECIAL if token["special"] else INK
    word = escape_html(token["text"]).replace("↵", "↵<br>")
    return (f'<span style="background:{ground};color:{ink};border-right:1px solid #fff;white-space:pre-wrap" '
            f'title="{token["id"]}">{word}</span>')
