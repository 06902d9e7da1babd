"""Rows to blocks of tokens: encode with a mask, mix roles by share, pack, pad. All the model sees is here.

A label of -100 is not trained. Text trains on all its tokens, tasks on the answers and their end token only.
In a packed block every row begins anew: its positions start at 0 and attention does not cross its border.
"""

import hashlib
import json
import os
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from ..errors import BadInput
from . import chat_template
from .chat_template import adds_bos, render_prompt, training_pieces
from .roles import Role, cached_folder

IGNORE_INDEX = -100


@dataclass(frozen=True)
class EncodedRow:
    """One row as tokens: `input_ids`, and `labels` of the same length with -100 where nothing is trained."""

    input_ids: list[int]
    labels: list[int]

    @property
    def trained(self) -> int:
        """Tokens that are predicted and trained; the first of a row has nothing before it."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


def encode_row(tokenizer: PreTrainedTokenizerBase, row: dict) -> list[EncodedRow]:
    """One row as tokens: one `Encoded`, or one an answer where the template rewrites earlier turns.

    Prompt and answer are tokenised apart, as when the model answers.
    """
    return encode_rows(tokenizer, [row])[0]


def encode_last(tokenizer: PreTrainedTokenizerBase, row: dict) -> EncodedRow:
    """The last of `encode_all`: the whole row, where the template does not rewrite earlier turns."""
    return encode_row(tokenizer, row)[-1]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> list[int]:
    """The tokens after which the model answers, exactly those that stand before an answer in training."""
    return tokenizer(render_prompt(tokenizer, messages), add_special_tokens=False)["input_ids"]


def encode_rows(tokenizer: PreTrainedTokenizerBase, rows: list[dict],
                 where: Callable[[int], str] | None = None) -> list[list[EncodedRow]]:
    """Rows as `encode_all` gives each, tokenised in one call, which is faster.

    Raises BadInput for a row that cannot be shown to the model; `where` tells the place of row i for it.
    """
    begin = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    shown = []
    for index, row in enumerate(rows):
        try:
            shown.append(training_pieces(tokenizer, row))
        except BadInput as error:
            raise BadInput(f"{where(index)}: {error}" if where else str(error)) from None
    parts = [part for texts in shown for text in texts for part, _ in text]
    tokens = iter(tokenizer(parts, add_special_tokens=False)["input_ids"] if parts else [])
    return [[_joined(text, tokens, begin if "text" in row else []) for text in texts]
            for row, texts in zip(rows, shown, strict=True)]


def _joined(text: list[tuple[str, bool]], tokens: Iterator[list[int]], begin: list[int]) -> EncodedRow:
    """A text from the tokens of its pieces, with the beginning-of-sequence token if it has to stand there."""
    ids, labels = [], []
    for _, trained in text:
        piece = next(tokens)
        ids += piece
        labels += piece if trained else [IGNORE_INDEX] * len(piece)
    if begin and ids[:1] != begin:
        return EncodedRow(begin + ids, [IGNORE_INDEX, *labels])
    return EncodedRow(ids, labels)


def encode_probe(tokenizer: PreTrainedTokenizerBase, rows: list[dict],
                max_length: int) -> tuple[list[EncodedRow], dict]:
    """A probe's rows as tokens, and how many were too long: text is then cut into rows, a task is dropped."""
    encoded, counts = [], Counter()
    pairs = zip(rows, encode_rows(tokenizer, rows), strict=True)
    for row, whole in ((row, one) for row, texts in pairs for one in texts):
        if "text" in row:
            starts = range(0, len(whole.input_ids), max_length)
            counts["text cut"] += len(starts) > 1
            pieces = [EncodedRow(whole.input_ids[start:start + max_length],
                              whole.labels[start:start + max_length]) for start in starts]
            encoded += [piece for piece in pieces if piece.trained]
        elif len(whole.input_ids) > max_length:
            counts["task longer than max_length"] += 1
        elif not whole.trained:
            counts["nothing to train"] += 1
        else:
            encoded.append(whole)
    return encoded, {reason: count for reason, count in counts.items() if count}

_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("trained", pa.list_(pa.uint8()))])


@dataclass
class RoleTokens:
    """The training rows of a role as tokens: their folder, and arrays over all that was encoded.

    `row` is the number of the training row, which may stand several times (one for each answer, see
    `template`); `lengths` and `trained` count tokens.
    """

    path: str
    row: np.ndarray
    lengths: np.ndarray
    trained: np.ndarray

    def read(self, number: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and trained flags of a piece."""
        file, starts, firsts, ids, flags = self._layout
        chunk = np.searchsorted(firsts, number, side="right") - 1
        begin = int(starts[number] - starts[firsts[chunk]]) + start
        return (np.frombuffer(os.pread(file.fileno(), 4 * length, ids[chunk] + 4 * begin), np.int32),
                np.frombuffer(os.pread(file.fileno(), length, flags[chunk] + begin), np.uint8))

    @cached_property
    def _layout(self) -> tuple:
        """The open file, each row's first token, and of each chunk its first row and where its values lie.

        Values are read from the file and not through the map, whose pages would stay resident by and by.
        """
        path = f"{self.path}/tokens.arrow"
        with pa.memory_map(path) as mapped:
            base = mapped.read_buffer().address
            mapped.seek(0)
            chunks = list(pa.ipc.open_stream(mapped))
            firsts = np.cumsum([0, *map(len, chunks)])
            ids, flags = ([chunk.column(name).values.buffers()[1].address - base for chunk in chunks]
                          for name in _SCHEMA.names)
        starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        file = open(path, "rb")
        weakref.finalize(self, file.close)
        return file, starts, firsts, ids, flags

    def __getstate__(self) -> dict:
        """The folder alone, for where it is hashed or sent to another process."""
        return {"path": self.path}

    def __setstate__(self, state: dict) -> None:
        """Read the sizes again."""
        self.__init__(state["path"], *np.load(f"{state['path']}/sizes.npy"))


@dataclass
class Pieces:
    """What of a role can train in blocks of a length: arrays of its number in `Tokens`, first token, length,
    trained tokens.
    """

    number: np.ndarray
    start: np.ndarray
    length: np.ndarray
    trained: np.ndarray

    def take(self, chosen: np.ndarray) -> "Pieces":
        """These pieces in this order."""
        return Pieces(self.number[chosen], self.start[chosen], self.length[chosen], self.trained[chosen])


def encode_role(tokenizer: PreTrainedTokenizerBase, role: Role) -> RoleTokens:
    """The role's training rows as tokens, from the cache where they were encoded before.

    Raises BadInput, naming file and line, for a row that the chat template cannot show.
    """
    parts = {"rows": role.digest, "tokenizer": tokenizer_fingerprint(tokenizer)}
    path = cached_folder("tokens", parts, lambda place: _write_tokens(place, tokenizer, role))
    return RoleTokens(str(path), *np.load(path / "sizes.npy"))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides how rows become tokens: tokenizer, template, library, and this code."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    words = fast.to_str() if fast else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    whole = hashlib.sha256(words.encode())
    for part in (type(tokenizer).__name__, tokenizer.chat_template, tokenizer.special_tokens_map,
                 version("transformers"), version("tokenizers")):
        whole.update(str(part).encode())
    for path in (chat_template.__file__, __file__):
        whole.update(Path(path).read_bytes())
    return whole.hexdigest()[:20]


def _write_tokens(place: Path, tokenizer: PreTrainedTokenizerBase, role: Role) -> None:
    wanted = np.zeros(len(role.rows.table), dtype=bool)
    wanted[role.chosen] = True
    sizes, begin, done = [np.empty((3, 0), dtype=np.int32)], 0, 0
    with pa.OSFile(str(place / "tokens.arrow"), "wb") as file, pa.ipc.new_stream(file, _SCHEMA) as writer:
        for batch in role.rows.batches():
            numbers = np.flatnonzero(wanted[begin:begin + len(batch)])
            made = encode_rows(tokenizer, [batch[number] for number in numbers],
                                       lambda index, at=begin + numbers: role.rows.where(at[index]))
            begin += len(batch)
            flat = [(row, one) for row, texts in enumerate(made, done) for one in texts]
            done += len(made)
            if flat:
                counted = [(row, len(one.input_ids), one.trained) for row, one in flat]
                sizes.append(np.array(counted, dtype=np.int32).T)
                writer.write_batch(_record_batch([one for _, one in flat], sizes[-1][1]))
    np.save(place / "sizes.npy", np.concatenate(sizes, axis=1))
    (place / "about.json").write_text(json.dumps({"rows": done}))


def _record_batch(made: list[EncodedRow], lengths: np.ndarray) -> pa.RecordBatch:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    ids, labels = (np.concatenate([np.array(getattr(row, name), dtype=np.int32) for row in made])
                   for name in ("input_ids", "labels"))
    flags = (labels != IGNORE_INDEX).astype(np.uint8)
    return pa.record_batch([pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (ids, flags)],
                           schema=_SCHEMA)


def cut_rows(tokens: RoleTokens, max_length: int, text: bool) -> tuple[Pieces, dict[str, np.ndarray]]:
    """What can train in blocks of `max_length` tokens, and the rows too long or with nothing to train.

    Texts are cut into pieces, tasks dropped. Returns the pieces, and by reason the training rows' numbers.
    """
    lengths, numbers = tokens.lengths, np.arange(len(tokens.lengths), dtype=np.int32)
    if not text:
        longer, nothing = lengths > max_length, tokens.trained == 0
        kept = numbers[~longer & ~nothing]
        reasons = {"task longer than max_length": longer, "nothing to train": ~longer & nothing}
        pieces = Pieces(kept, np.zeros_like(kept), lengths[kept], tokens.trained[kept])
        return pieces, {reason: tokens.row[found] for reason, found in reasons.items() if found.any()}
    counts = -(-lengths // max_length)
    number = np.repeat(numbers, counts)
    within = np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = (within * max_length).astype(np.int32)
    length = np.minimum(max_length, lengths[number] - start)
    pieces = Pieces(number, start, length, length - 1)  # the first token of a piece has nothing before it
    cut_rows = tokens.row[counts > 1]
    return pieces.take(np.flatnonzero(length > 1)), {"text cut": cut_rows} if len(cut_rows) else {}


def refuse_untrainable(pieces: Pieces, role: str, where: str, max_length: int, reasons: dict) -> None:
    """Raise BadInput where no token of a role can train."""
    if not len(pieces.number):
        said = ", ".join(f"{reason}: {len(rows)} rows" for reason, rows in reasons.items()) or "it has no row"
        raise BadInput(f"{where}: no row of {role} has a token to train within max_length {max_length} "
                       f"({said}); take a larger max_length")
