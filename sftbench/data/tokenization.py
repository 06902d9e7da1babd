"""Text to tokens: ids and labels of each row, what is cut or dropped for its length, and the cache of tokens.

A label of -100 is not trained. Text trains on all its tokens, tasks on the answers and their end token only.
"""

import bisect
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase as Tokenizer

from ..errors import BadInput
from ..runs.stage_store import hash_key
from ..sources.readers import READ_BATCH
from ..templates import control_tokens, frames, rendering, tool_forms
from ..templates.control_tokens import FAMILY_TOKENS, MARK, encode_marked, has_marks, mark_row
from ..templates.rendering import adds_bos
from . import chat_template
from .chat_template import is_tokenised_whole, render_prompt, training_pieces
from .fields import PLACEHOLDER
from .roles import Role
from .rows import cache_folder, cache_table

IGNORE_INDEX = -100
TOKENS = Features({"row": Value("int32"), "input_ids": List(Value("int32")), "trained": List(Value("bool")),
                   "length": Value("int32"), "count": Value("int32")})
# what of a row trains in a block: its number in `RoleTokens`, the first token, all tokens, those trained
PIECE = np.dtype([(name, np.int32) for name in ("number", "start", "length", "trained")])


@dataclass(frozen=True)
class EncodedRow:
    """One row as tokens: `input_ids`, and `labels` of the same length with -100 where nothing is trained."""

    input_ids: list[int]
    labels: list[int]

    @property
    def trained(self) -> int:
        """Tokens that are predicted and trained; the first of a row has nothing before it."""
        labels = self.labels[1:]
        return len(labels) - labels.count(IGNORE_INDEX)

    def cut(self, start: int = 0, length: int | None = None) -> "EncodedRow":
        """The tokens from `start` on as a block has them: with no label for the first.

        Nothing comes before it that could predict it; in a packed block the row before would.
        """
        part = slice(start, None if length is None else start + length)
        return EncodedRow(self.input_ids[part], [IGNORE_INDEX, *self.labels[part][1:]])


def encode_prompt(tokenizer: Tokenizer, question: list[dict] | dict) -> list[int]:
    """The tokens after which the model answers, exactly those that come before an answer in training.

    `question` is a conversation, or a row with it and its tools, as `render_prompt` takes it.
    """
    row = mark_row(tokenizer, {"messages": question} if isinstance(question, list) else question)
    return _encode_texts(tokenizer, [render_prompt(tokenizer, row["messages"], row.get("tools"))])[0]


def encode_row(tokenizer: Tokenizer, row: dict) -> list[EncodedRow]:
    """One row as tokens; several, one for each answer, where the template rewrites earlier turns."""
    return encode_rows(tokenizer, [row])[0]


def encode_rows(tokenizer: Tokenizer, rows: list[dict],
                where: Callable[[int], str] = lambda index: "") -> list[list[EncodedRow]]:
    """Rows as `encode_row` gives each, tokenised in one call, which is faster.

    Raises BadInput for a row that the template cannot show; `where` gives the file and line of row i for it.
    """
    rendered, whole = [], []
    for index, row in enumerate(rows):
        try:
            whole.append(is_tokenised_whole(tokenizer, row))
            rendered.append(training_pieces(tokenizer, mark_row(tokenizer, row)))
        except BadInput as error:
            line = where(index)
            raise BadInput(f"{line}: {error}".removeprefix(": "), field=error.field, where=line) from None
    # Each piece by itself: a model answers after the tokens of its prompt, so no token may cross the border
    # between prompt and answer. Templates bring their own special tokens.
    tokens = iter(_encode_texts(tokenizer, [part for texts, is_whole in zip(rendered, whole, strict=True)
                                            for text in texts for part in _parts(text, is_whole)]))
    # a conversation has its BOS from the template, as on every server; text where the tokenizer adds one
    bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    return [[encoded for text in texts for encoded in (
        _join_whole(tokenizer, text, tokens) if is_whole else
        [_join_pieces(text, tokens, bos if "text" in row else [])])]
        for row, texts, is_whole in zip(rows, rendered, whole, strict=True)]


def _encode_texts(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The tokens of rendered texts, those with marks (`control_tokens`) one by one."""
    plain = [text for text in texts if MARK not in text]
    ids = iter(tokenizer(plain, add_special_tokens=False, return_attention_mask=False,
                         return_token_type_ids=False)["input_ids"] if plain else [])
    return [encode_marked(tokenizer, text) if MARK in text else next(ids) for text in texts]


def _parts(text: list[tuple[str, bool]], whole: bool) -> Iterator[str]:
    """What of a text is tokenised: its pieces, or each piece with all before it."""
    pieces = (piece for piece, _ in text)
    return itertools.accumulate(pieces) if whole else pieces


def _join_pieces(text: list[tuple[str, bool]], tokens: Iterator[list[int]],
                 bos: list[int]) -> EncodedRow:
    """A text from the tokens of its pieces, after the beginning-of-sequence token if it lacks that."""
    ids, labels = [], []
    for _, trained in text:
        piece = next(tokens)
        ids += piece
        labels += piece if trained else [IGNORE_INDEX] * len(piece)
    missing = bos if ids[:1] != bos else []
    return EncodedRow(missing + ids, [IGNORE_INDEX] * len(missing) + labels)


def _join_whole(tokenizer: Tokenizer, text: list[tuple[str, bool]],
                tokens: Iterator[list[int]]) -> Iterator[EncodedRow]:
    """A text from the tokens of each piece with all before it; a new row where these are not those before."""
    ids, labels = [], []
    for part, trained in text:
        whole = next(tokens)
        piece = whole[len(ids):]
        if whole[:len(ids)] != ids:
            if trained:  # a token crosses the border, which no model that continues the prompt can give
                piece, = _encode_texts(tokenizer, [part])
            else:
                yield EncodedRow(ids, labels)
                ids, labels, piece = [], [], whole
        ids = ids + piece
        labels = labels + (piece if trained else [IGNORE_INDEX] * len(piece))
    yield EncodedRow(ids, labels)


def control_token_rows(tokenizer: Tokenizer, rows: list[dict] | Dataset) -> int:
    """The number of rows with text that looks like a control token, and is encoded as text."""
    batches = map(_unbatch, rows.iter(READ_BATCH)) if isinstance(rows, Dataset) else [rows]
    marked = ((row, mark_row(tokenizer, row)) for batch in batches for row in batch)
    return sum(new is not row and has_marks(new) for row, new in marked)


def foreign_marks(tokenizer: Tokenizer, rows: Dataset) -> dict[str, int]:
    """Rows by what they have as text, though it is a control token of other models or stands for a picture.

    Control tokens are looked for in answers and texts, as these are trained; the rest in all that is read.
    """
    counts, known = Counter(), tokenizer.get_vocab()
    for row in itertools.chain.from_iterable(map(_unbatch, rows.iter(READ_BATCH))):
        turns = row.get("messages", ())
        read = row.get("text") or "\n".join(turn["content"] for turn in turns)
        trained = row.get("text") or "\n".join(turn["content"] for turn in turns if (
            turn["role"] == "assistant" and turn.get("train") is not False))
        counts.update({*FAMILY_TOKENS.findall(trained), *(match[0] for match in PLACEHOLDER.finditer(read))})
    return {mark: count for mark, count in counts.most_common() if mark not in known}


def _unbatch(batch: dict[str, list]) -> list[dict]:
    return [{name: value for name, value in zip(batch, values, strict=True) if value is not None}
            for values in zip(*batch.values(), strict=True)]


@dataclass
class RoleTokens:
    """Encoded rows: their tokens in `rows`, and arrays over all of them.

    `row` is the number of the source's row, which may appear several times (one for each answer, see
    `chat_template.training_pieces`); `lengths` and `trained` count tokens. `rows` is the cached table in
    Arrow's format; None for rows that are at hand, and for none.
    """

    rows: Dataset | None
    row: np.ndarray
    lengths: np.ndarray
    trained: np.ndarray

    @cached_property
    def _firsts(self) -> list[int]:
        """The number of the first row in each chunk of the table."""
        return [0, *itertools.accumulate(map(len, self.rows.data.column("input_ids").chunks[:-1]))]

    def read(self, number: int, start: int, length: int) -> EncodedRow:
        """A piece of a row as it is trained; of the table only its tokens are read.

        From Arrow's own arrays: `datasets` takes a tenth of a millisecond to give one row.
        """
        part = bisect.bisect_right(self._firsts, number) - 1
        ids, trained = (
            self.rows.data.column(name).chunk(part)[number - self._firsts[part]].values.slice(start, length)
            .to_numpy(zero_copy_only=False) for name in ("input_ids", "trained"))
        return EncodedRow(ids.tolist(), np.where(trained, ids, IGNORE_INDEX).tolist()).cut()


def probe_pieces(tokenizer: Tokenizer, rows: list[dict],
                 max_length: int) -> tuple[list[tuple[int, EncodedRow]], dict[str, int]]:
    """As `encode_probe`, each piece with its row's number, from 0."""
    encoded = [(number, row) for number, texts in enumerate(encode_rows(tokenizer, rows)) for row in texts]
    sizes = np.array([(number, len(row.input_ids), row.trained) for number, row in encoded], dtype=np.int32)
    cuts, reasons = cut_rows(RoleTokens(None, *sizes.reshape(-1, 3).T), max_length,
                             text="text" in (rows or [{}])[0])
    return ([(encoded[number][0], encoded[number][1].cut(start, length))
             for number, start, length, _ in cuts.tolist()],
            {reason: len(numbers) for reason, numbers in reasons.items()})


def encode_probe(tokenizer: Tokenizer, rows: list[dict], max_length: int) -> tuple[list[EncodedRow], dict]:
    """A probe's rows as they are scored, cut and dropped as in training; and by reason how many were."""
    pieces, reasons = probe_pieces(tokenizer, rows, max_length)
    return [piece for _, piece in pieces], reasons


def encode_role(tokenizer: Tokenizer, role: Role) -> RoleTokens:
    """The role's training rows as tokens, from the cache where they were encoded before.

    Raises BadInput, naming file and line, for a row that the chat template cannot show.
    """
    if not len(role.chosen):
        return RoleTokens(None, *np.zeros((3, 0), dtype=np.int32))
    key = hash_key(rows=role.digest, tokenizer=tokenizer_fingerprint(tokenizer))
    chosen = np.full(len(role.rows.table), -1)
    chosen[role.chosen] = np.arange(len(role.chosen))
    # over all rows in their order and not over the selected ones, since `datasets` gathers those one by one
    table = cache_table(
        role.rows.table.map, function=_encode_batch, batched=True, batch_size=READ_BATCH, with_indices=True,
        fn_kwargs={"tokenizer": tokenizer, "role": role, "chosen": chosen}, features=TOKENS,
        remove_columns=role.rows.table.column_names, new_fingerprint=key, load_from_cache_file=True,
        cache_file_name=str(cache_folder() / f"tokens-{key}.arrow"))
    columns = (table.data.column(name).to_numpy() for name in ("row", "length", "count"))
    return RoleTokens(table, *columns)


def _encode_batch(batch: dict[str, list], indices: list[int], tokenizer, role: Role,
                  chosen: np.ndarray) -> dict[str, list]:
    rows = _unbatch(batch)
    numbers = [number for number in indices if chosen[number] >= 0]
    encoded = encode_rows(tokenizer, [rows[number - indices[0]] for number in numbers],
                          lambda index: role.rows.where(numbers[index]))
    flat = [(chosen[number], row) for number, texts in zip(numbers, encoded, strict=True) for row in texts]
    return {"row": [number for number, _ in flat], "input_ids": [row.input_ids for _, row in flat],
            "trained": [[label != IGNORE_INDEX for label in row.labels] for _, row in flat],
            "length": [len(row.input_ids) for _, row in flat], "count": [row.trained for _, row in flat]}


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """A hash of all that decides how rows become tokens: tokenizer, template, library, and this code."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    words = fast.to_str() if fast else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    digest = hashlib.sha256(words.encode())
    for part in (type(tokenizer).__name__, tokenizer.chat_template, tokenizer.special_tokens_map,
                 version("transformers"), version("tokenizers"), rendering.render_settings(tokenizer)):
        digest.update(str(part).encode())
    for module in (chat_template, control_tokens, frames, rendering, tool_forms):
        digest.update(Path(module.__file__).read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:20]


def cut_rows(tokens: RoleTokens, max_length: int, text: bool) -> tuple[np.recarray, dict[str, np.ndarray]]:
    """What can train in blocks of `max_length` tokens: texts are cut into pieces, longer tasks are dropped.

    Returns the pieces (see PIECE), and by reason the numbers of the rows that were cut or dropped.
    """
    longer = tokens.lengths > max_length
    if text:
        counts, reasons = -(-tokens.lengths // max_length), {"text cut": longer}
    else:
        nothing = ~longer & (tokens.trained == 0)
        counts = ~longer & ~nothing
        reasons = {"task longer than max_length": longer, "nothing to train": nothing}
    number = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    start = (np.arange(len(number)) - (np.cumsum(counts) - counts)[number]).astype(np.int32) * max_length
    length = np.minimum(max_length, tokens.lengths[number] - start)
    trained = length - 1 if text else tokens.trained[number]  # the first token of a piece is no label
    pieces = np.rec.fromarrays([number, start, length, trained], dtype=PIECE)
    return (pieces[trained > 0],
            {reason: tokens.row[rows] for reason, rows in reasons.items() if rows.any()})


def refuse_untrainable(pieces: np.recarray, role: str, where: str, max_length: int, reasons: dict) -> None:
    """Raise BadInput where no token of a role can train."""
    if not len(pieces):
        why = ", ".join(f"{reason}: {len(rows)} rows" for reason, rows in reasons.items()) or "it has no row"
        raise BadInput(f"{where}: no row of {role} has a token to train within max_length {max_length} "
                       f"({why}); {untrainable_remedy(reasons)}", field="max_length", where=where)


def untrainable_remedy(reasons: dict) -> str:
    """What helps where nothing of a role can train, by the reasons for which rows were dropped."""
    return ("take a larger max_length" if "task longer than max_length" in reasons else
            "give rows with more than one token of text, or with an answer")
