"""Order by lengths alone: roles drawn to their shares, spread evenly, packed into blocks."""

import itertools
import random

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from ..recipes.stages import StageSettings
from .tokenization import IGNORE_INDEX, EncodedRow, Pieces, RoleTokens


def mix_encoded(encoded: dict[str, list[EncodedRow]], shares: dict[str, float], epochs: float,
        seed: int) -> tuple[list[EncodedRow], dict]:
    """Rows at hand in the order of `mixing.mix`, and the passes of each role."""
    lengths = {role: np.array([len(row.input_ids) for row in rows]) for role, rows in encoded.items()}
    roles, rows, passes = mix_rows(lengths, shares, epochs, seed)
    names = list(shares)
    return [encoded[names[role]][row] for role, row in zip(roles, rows, strict=True)], passes


def pack_encoded(rows: list[EncodedRow], max_length: int) -> list[list[EncodedRow]]:
    """Rows at hand in the blocks of `mixing.pack`."""
    order, borders = pack_rows([len(row.input_ids) for row in rows], max_length)
    return [[rows[index] for index in order[start:end]]
            for start, end in itertools.pairwise(borders.tolist())]


def blocks_to_dataset(blocks: list[list[EncodedRow]]) -> Dataset:
    """Blocks as a dataset: `input_ids`, `labels`, `seq_lengths` (tokens of each row), `tokens` (of all).

    The first token of every row is not a label: in a packed block it would be predicted from the row before.
    """
    return Dataset.from_dict({
        "input_ids": [[token for row in block for token in row.input_ids] for block in blocks],
        "labels": [[label for row in block for label in (IGNORE_INDEX, *row.labels[1:])] for block in blocks],
        "seq_lengths": [[len(row.input_ids) for row in block] for block in blocks],
        "tokens": [sum(len(row.input_ids) for row in block) for block in blocks]})


def block_tokens(dataset: Dataset) -> np.ndarray:
    """The tokens of each block, without reading the blocks."""
    return dataset.data.column("tokens").to_numpy()


def collate_batch(examples: list[dict], pad_token_id: int, packed: bool) -> dict[str, torch.Tensor]:
    """A batch (blocks × longest block) of `input_ids` and `labels`, padded on the right, padding not trained.

    Packed: `position_ids` that start at 0 in every row, and no attention mask, from which transformers builds
    attention that stays within a row. Else: an `attention_mask`, which a prefix before the row needs.
    """
    width = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([list(example[name]) + [filler] * (width - len(example[name]))
                             for example in examples])

    batch = {"input_ids": padded("input_ids", pad_token_id), "labels": padded("labels", IGNORE_INDEX)}
    if packed:
        batch["position_ids"] = torch.tensor([
            [position for length in (*example["seq_lengths"], width - len(example["input_ids"]))
             for position in range(length)] for example in examples])
    else:
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        batch["attention_mask"] = (torch.arange(width)[None] < lengths[:, None]).long()
    return batch


class BlockReader:
    """Reads blocks from the roles' arrow files: the transform of a stage's dataset."""

    def __init__(self, tokens: list[RoleTokens], role: np.ndarray, pieces: Pieces, borders: np.ndarray):
        self.tokens, self.role, self.pieces, self.borders = tokens, role, pieces, borders

    def __call__(self, batch: dict) -> dict:
        found = [self._block(number) for number in batch["block"]]
        return {name: [block[name] for block in found] for name in ("input_ids", "labels", "seq_lengths")}

    def _block(self, number: int) -> dict:
        block = {"input_ids": [], "labels": [], "seq_lengths": []}
        for index in range(self.borders[number], self.borders[number + 1]):
            piece = (array[index] for array in (self.pieces.number, self.pieces.start, self.pieces.length))
            ids, flags = self.tokens[self.role[index]].read(*piece)
            labels = np.where(flags, ids, IGNORE_INDEX)
            labels[0] = IGNORE_INDEX  # in a packed block it would be predicted from the row before
            block["input_ids"] += ids.tolist()
            block["labels"] += labels.tolist()
            block["seq_lengths"].append(len(ids))
        return block


def build_stage_dataset(
    tokens: dict[str, RoleTokens],
    pieces: dict[str, Pieces],
    times: dict[str, np.ndarray],
    shares: dict[str, float],
    settings: StageSettings,
) -> tuple[datasets.Dataset, dict]:
    """A stage's blocks in training order, and what each role gave: rows, passes, tokens, share of them.

    The dataset gives `input_ids`, `labels` and `seq_lengths` (tokens of each row in the block) when indexed,
    and holds nothing but numbers.
    """
    names = list(shares)
    often = {name: times[name][tokens[name].row[pieces[name].number]] for name in names}
    role, row, passes = mix_rows({name: pieces[name].length for name in names}, shares,
                                   settings.num_train_epochs, settings.seed, often)
    borders = np.arange(len(row) + 1)
    if settings.packing:
        lengths = _gathered([pieces[name].length for name in names], role, row)
        order, borders = pack_rows(lengths, settings.max_length)
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
    return made.with_transform(BlockReader([tokens[name] for name in names], role, ordered, borders)), drawn


def _gathered(columns: list[np.ndarray], role: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Of each drawn row its value in the column of its role."""
    found = np.empty(len(row), dtype=np.int32)
    for number, column in enumerate(columns):
        mine = role == number
        found[mine] = column[row[mine]]
    return found

OPEN_BLOCKS = 32  # blocks kept open while packing: enough to fill them to 97 %, few enough to keep the order


def mix_rows(lengths: dict[str, np.ndarray], shares: dict[str, float], epochs: float, seed: int,
        times: dict[str, np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray, dict]:
    """A stage's training order: of each drawn row its role's number in `shares` and its own; and the passes.

    Shares are parts of the tokens. An epoch is one pass over the first role of `shares`; the others are drawn
    to their share, and anew in another order once all their rows were used. Every role is spread evenly.
    `times` says how often each row stands in one pass (default: once).
    """
    once = {role: np.repeat(np.arange(len(sizes), dtype=np.int32), 1 if times is None else times[role])
            for role, sizes in lengths.items()}
    first = next(iter(shares))
    wanted = int(lengths[first][once[first]].sum()) * epochs
    roles, rows, places, passes = [], [], [], {}
    for number, (role, share) in enumerate(shares.items()):
        order = random.Random(f"{seed} {role}")
        drawn = _draw(once[role], lengths[role], wanted * share / shares[first], order)
        jitter = np.fromiter((order.random() for _ in range(len(drawn))), float, len(drawn))
        roles.append(np.full(len(drawn), number, dtype=np.int8))
        rows.append(drawn)
        places.append((np.arange(len(drawn)) + jitter) / len(drawn))
        passes[role] = round(len(drawn) / len(once[role]), 3)
    roles, rows, places = map(np.concatenate, (roles, rows, places))
    # roles at the same place stand in the order of their names
    rank = np.argsort(np.argsort(list(shares))).astype(np.int8)
    order = np.lexsort((rank[roles], places))
    return roles[order], rows[order], passes


def _draw(once: np.ndarray, lengths: np.ndarray, tokens: float, order: random.Random) -> np.ndarray:
    """Rows in shuffled passes until the wanted number of tokens is reached, one row at least."""
    drawn, have = [], 0
    while have < tokens or not drawn:
        one = once[order.sample(range(len(once)), len(once))]
        sums = have + np.cumsum(lengths[one], dtype=np.int64)
        one = one[:np.searchsorted(sums, tokens) + 1]
        drawn.append(one)
        have = int(sums[len(one) - 1])
    return np.concatenate(drawn)


def pack_rows(lengths: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in blocks of at most `max_length` tokens, nearly in order: first fit among the open blocks.

    Returns the rows' numbers block by block, and the borders: block b is `order[borders[b]:borders[b + 1]]`.
    """
    block_of = np.empty(len(lengths), dtype=np.int32)
    done, still_open, opened = [], [], 0
    for row, size in enumerate(map(int, lengths)):
        for block in still_open:
            if block[0] + size <= max_length:
                break
        else:
            if len(still_open) == OPEN_BLOCKS:
                fullest = max(range(OPEN_BLOCKS), key=lambda number: still_open[number][0])
                done.append(still_open.pop(fullest)[1])
            block = [0, opened]
            still_open.append(block)
            opened += 1
        block[0] += size
        block_of[row] = block[1]
    rank = np.empty(opened, dtype=np.int32)
    rank[np.array(done + [block[1] for block in still_open], dtype=np.int32)] = np.arange(opened)
    block_of = rank[block_of]
    borders = np.concatenate([[0], np.cumsum(np.bincount(block_of, minlength=opened))])
    return np.argsort(block_of, kind="stable").astype(np.int32), borders
