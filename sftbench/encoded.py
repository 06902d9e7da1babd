"""A role's rows as tokens, encoded once into an arrow file; a stage as numbers of pieces of it.

A piece is a row, or a part of a long text: number of the row, first token, length. Tokens are read when a
block is trained.
"""

import hashlib
import json
import os
import weakref
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from . import blocks, mixing, template
from .data import Role
from .errors import BadInput
from .rows import cached

_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("trained", pa.list_(pa.uint8()))])


@dataclass
class Tokens:
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


def encode(tokenizer: PreTrainedTokenizerBase, role: Role) -> Tokens:
    """The role's training rows as tokens, from the cache where they were encoded before.

    Raises BadInput, naming file and line, for a row that the chat template cannot show.
    """
    parts = {"rows": role.digest, "tokenizer": fingerprint(tokenizer)}
    path = cached("tokens", parts, lambda place: _write(place, tokenizer, role))
    return Tokens(str(path), *np.load(path / "sizes.npy"))


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides how rows become tokens: tokenizer, template, library, and this code."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    words = fast.to_str() if fast else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    whole = hashlib.sha256(words.encode())
    for part in (type(tokenizer).__name__, tokenizer.chat_template, tokenizer.special_tokens_map,
                 version("transformers"), version("tokenizers")):
        whole.update(str(part).encode())
    for path in (template.__file__, blocks.__file__, __file__):
        whole.update(Path(path).read_bytes())
    return whole.hexdigest()[:20]


def _write(place: Path, tokenizer: PreTrainedTokenizerBase, role: Role) -> None:
    wanted = np.zeros(len(role.rows.table), dtype=bool)
    wanted[role.chosen] = True
    sizes, begin, done = [np.empty((3, 0), dtype=np.int32)], 0, 0
    with pa.OSFile(str(place / "tokens.arrow"), "wb") as file, pa.ipc.new_stream(file, _SCHEMA) as writer:
        for batch in role.rows.batches():
            numbers = np.flatnonzero(wanted[begin:begin + len(batch)])
            made = blocks.encode_batch(tokenizer, [batch[number] for number in numbers],
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


def _record_batch(made: list[blocks.Encoded], lengths: np.ndarray) -> pa.RecordBatch:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    ids, labels = (np.concatenate([np.array(getattr(row, name), dtype=np.int32) for row in made])
                   for name in ("input_ids", "labels"))
    flags = (labels != blocks.IGNORED).astype(np.uint8)
    return pa.record_batch([pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (ids, flags)],
                           schema=_SCHEMA)


def cut(tokens: Tokens, max_length: int, text: bool) -> tuple[Pieces, dict[str, np.ndarray]]:
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


class Reader:
    """Reads blocks from the roles' arrow files: the transform of a stage's dataset."""

    def __init__(self, tokens: list[Tokens], role: np.ndarray, pieces: Pieces, borders: np.ndarray):
        self.tokens, self.role, self.pieces, self.borders = tokens, role, pieces, borders

    def __call__(self, batch: dict) -> dict:
        found = [self._block(number) for number in batch["block"]]
        return {name: [block[name] for block in found] for name in ("input_ids", "labels", "seq_lengths")}

    def _block(self, number: int) -> dict:
        block = {"input_ids": [], "labels": [], "seq_lengths": []}
        for index in range(self.borders[number], self.borders[number + 1]):
            piece = (array[index] for array in (self.pieces.number, self.pieces.start, self.pieces.length))
            ids, flags = self.tokens[self.role[index]].read(*piece)
            labels = np.where(flags, ids, blocks.IGNORED)
            labels[0] = blocks.IGNORED  # in a packed block it would be predicted from the row before
            block["input_ids"] += ids.tolist()
            block["labels"] += labels.tolist()
            block["seq_lengths"].append(len(ids))
        return block


def stage(tokens: dict[str, Tokens], pieces: dict[str, Pieces], times: dict[str, np.ndarray],
          shares: dict[str, float], settings: dict) -> tuple[datasets.Dataset, dict]:
    """A stage's blocks in training order, and what each role gave: rows, passes, tokens, share of them.

    The dataset gives `input_ids`, `labels` and `seq_lengths` (tokens of each row in the block) when indexed,
    and holds nothing but numbers.
    """
    names = list(shares)
    often = {name: times[name][tokens[name].row[pieces[name].number]] for name in names}
    role, row, passes = mixing.mix({name: pieces[name].length for name in names}, shares,
                                   settings["num_train_epochs"], settings["seed"], often)
    borders = np.arange(len(row) + 1)
    if settings["packing"]:
        lengths = _gathered([pieces[name].length for name in names], role, row)
        order, borders = mixing.pack(lengths, settings["max_length"])
        role, row = role[order], row[order]
        del order, lengths  # of millions of rows, these are what memory is needed for
    ordered = Pieces(*(_gathered([getattr(pieces[name], column) for name in names], role, row)
                       for column in ("number", "start", "length", "trained")))
    drawn = {}
    for number, name in enumerate(names):
        mine = role == number
        drawn[name] = {"rows": int(mine.sum()), "passes": passes[name],
                       "tokens": int(ordered.length[mine].sum()),
                       "trained_tokens": int(ordered.trained[mine].sum())}
    whole = sum(entry["tokens"] for entry in drawn.values())
    for entry in drawn.values():
        entry["share"] = round(entry["tokens"] / whole, 4)
    sizes = np.add.reduceat(ordered.length, borders[:-1])
    made = datasets.Dataset(pa.table({"block": np.arange(len(sizes), dtype=np.int32), "tokens": sizes}))
    del row
    return made.with_transform(Reader([tokens[name] for name in names], role, ordered, borders)), drawn


def _gathered(columns: list[np.ndarray], role: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Of each drawn row its value in the column of its role."""
    found = np.empty(len(row), dtype=np.int32)
    for number, column in enumerate(columns):
        mine = role == number
        found[mine] = column[row[mine]]
    return found


def refuse_nothing(pieces: Pieces, role: str, where: str, max_length: int, reasons: dict) -> None:
    """Raise BadInput where no token of a role can train."""
    if not len(pieces.number):
        said = ", ".join(f"{reason}: {len(rows)} rows" for reason, rows in reasons.items()) or "it has no row"
        raise BadInput(f"{where}: no row of {role} has a token to train within max_length {max_length} "
                       f"({said}); take a larger max_length")
