"""Rows to batches: roles mixed by their shares of tokens, packed into blocks, padded.

Two rows packed into one block of at most 8 tokens, the first a text, the second a prompt (8) and its answer
(9 1); 1 is the end token:

    row 1   input_ids 5 6 7 1     labels    5    6    7    1      (all of a text is trained)
    row 2   input_ids 8 9 1       labels -100    9    1           (of a task the answer and its end)

    input_ids       5    6    7    1    8    9    1
    labels       -100    6    7    1 -100    9    1    (the first token of a row is no label)
    position_ids    0    1    2    3    0    1    2    (each row begins at 0, and attends to itself alone)
    seq_lengths  4 3

Blocks decide what a step trains. In which sequences the rows of a batch's blocks go through the model is
another matter (`spread_rows`): it changes no loss, only the time.
"""

import heapq
import itertools
import math
import random
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from ..distributed import process_count
from ..recipes.stages import StageSettings
from .tokenization import IGNORE_INDEX, EncodedRow, RoleTokens

COUNT_GROWTH = 1.1  # from one number of blocks that is tried for a batch to the next; up to 11 all
OPEN_BLOCKS = 32  # blocks open while packing: enough to fill them to 97 %, few enough to keep the order


def rows_to_dataset(rows: list[EncodedRow], max_length: int | None = None) -> Dataset:
    """Rows as a dataset of blocks of at most `max_length` tokens, or of a block for each row without it.

    It has `input_ids`, `labels`, `seq_lengths` (tokens of each row), and the block's `tokens` and `trained`.
    """
    order, borders = np.arange(len(rows)), np.arange(len(rows) + 1)
    if max_length is not None:
        order, borders = pack_rows([len(row.input_ids) for row in rows], max_length)
    blocks = [[rows[index] for index in order[start:end]] for start, end in itertools.pairwise(borders)]
    return Dataset.from_list([join_rows([row.cut() for row in block]) | {
        "tokens": sum(len(row.input_ids) for row in block), "trained": sum(row.trained for row in block)}
        for block in blocks])


def join_rows(rows: list[EncodedRow]) -> dict[str, list[int]]:
    """A block of rows that were `cut`: `input_ids`, `labels`, and `seq_lengths` (tokens of each row)."""
    return {"input_ids": [token for row in rows for token in row.input_ids],
            "labels": [label for row in rows for label in row.labels],
            "seq_lengths": [len(row.input_ids) for row in rows]}


def block_tokens(dataset: Dataset, which: str = "tokens") -> np.ndarray:
    """The tokens of each block, or those "trained", without reading the blocks."""
    return dataset.data.column(which).to_numpy()


def count_steps(dataset: Dataset, settings: StageSettings) -> int:
    """Optimiser steps of a stage: its blocks by batch, processes and accumulation, at most `max_steps`."""
    batches = math.ceil(len(dataset) / settings.per_device_train_batch_size / process_count())
    steps = math.ceil(batches / settings.gradient_accumulation_steps)
    return min(steps, settings.max_steps or steps)


def batch_shape(dataset: Dataset, steps: int, settings: StageSettings) -> tuple[int, int]:
    """Of a stage's largest batches the tokens that each of its blocks has computed, and all that train."""
    size = settings.per_device_train_batch_size
    count = steps * settings.blocks_per_step

    def by_batch(function: np.ufunc, which: str) -> int:
        blocks = block_tokens(dataset, which)[:count]
        return int(function.reduceat(blocks, np.arange(0, len(blocks), size)).max())

    width = -(-by_batch(np.add, "tokens") // size) if settings.packing else by_batch(np.maximum, "tokens")
    return width, by_batch(np.add, "trained")


def spread_rows(blocks: list[dict], attention_cost: float, context: int | None = None) -> list[dict]:
    """The same rows in other blocks, of about one length and as many as the model computes fastest.

    One long block needs no padding, but each token attends over all of it: a token of a block of n tokens
    costs 1 + n × `attention_cost`. No block has more tokens than `context`, where that is given.
    """
    rows = [EncodedRow(block["input_ids"][start:end], block["labels"][start:end]) for block in blocks
            for start, end in itertools.pairwise(itertools.accumulate(block["seq_lengths"], initial=0))]
    rows.sort(key=lambda row: -len(row.input_ids))
    most = math.ceil(math.log(len(rows), COUNT_GROWTH))
    counts = {min(math.ceil(COUNT_GROWTH ** power), len(rows)) for power in range(most + 1)}
    layouts = [_deal_rows(rows, count) for count in sorted(counts)]
    widths = [max(sum(len(row.input_ids) for row in group) for group in groups) for groups in layouts]
    costs = [(width > (context or math.inf), len(groups) * width * (1 + width * attention_cost))
             for groups, width in zip(layouts, widths, strict=True)]
    return [join_rows(group) for group in layouts[costs.index(min(costs))]]


def _deal_rows(rows: list[EncodedRow], count: int) -> list[list[EncodedRow]]:
    """The rows, which come longest first, in so many groups: each to the shortest group so far."""
    groups = [(0, number, []) for number in range(count)]
    for row in rows:
        size, number, group = groups[0]
        group.append(row)
        heapq.heapreplace(groups, (size + len(row.input_ids), number, group))
    return [group for _, _, group in sorted(groups, key=lambda group: group[1])]


def collate_batch(examples: list[dict], pad_token_id: int, packed: bool) -> dict[str, torch.Tensor]:
    """A batch (blocks × longest block) of `input_ids` and `labels`, padded on the right, padding not trained.

    Packed: `position_ids` that start at 0 in every row. Else: an `attention_mask`.
    """
    width = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([list(example[name]) + [filler] * (width - len(example[name]))
                             for example in examples])

    batch = {"input_ids": padded("input_ids", pad_token_id), "labels": padded("labels", IGNORE_INDEX)}
    if packed:
        # From these and no attention mask transformers (5.23) builds block-diagonal attention for sdpa, but
        # only with use_cache=False; else rows of a block see each other. test_packed_loss_is_unpacked_loss
        # checks it for nine families. A prefix takes the cache's place: see `all_logits`.
        batch["position_ids"] = torch.tensor([
            [position for length in (*example["seq_lengths"], width - len(example["input_ids"]))
             for position in range(length)] for example in examples])
    else:
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        batch["attention_mask"] = (torch.arange(width)[None] < lengths[:, None]).long()
    return batch


def build_stage_dataset(tokens: dict[str, RoleTokens], pieces: dict[str, np.recarray],
                        times: dict[str, np.ndarray], shares: dict[str, float],
                        settings: StageSettings) -> tuple[Dataset, dict]:
    """A stage's blocks in training order, and what each role gave: rows, passes, tokens, share of them.

    The dataset gives `input_ids`, `labels` and `seq_lengths` (tokens of each row in the block) when indexed,
    and holds nothing but numbers.
    """
    names = list(shares)
    often = {name: times[name][tokens[name].row[pieces[name]["number"]]] for name in names}
    role, row, passes = mix_rows({name: pieces[name]["length"] for name in names}, shares,
                                 settings.num_train_epochs, settings.seed, often)
    joined = np.concatenate([pieces[name] for name in names])
    row += np.cumsum([0, *(len(pieces[name]) for name in names)], dtype=np.int32)[role]
    borders = np.arange(len(row) + 1)
    if settings.packing:
        order, borders = pack_rows(joined["length"][row], settings.max_length)
        role, row = role[order], row[order]
    drawn = joined[row]
    sizes = np.add.reduceat(drawn["length"], borders[:-1])
    table = Dataset(pa.table({"block": np.arange(len(sizes), dtype=np.int32), "tokens": sizes,
                              "trained": np.add.reduceat(drawn["trained"], borders[:-1])}))
    figures = {}
    for number, name in enumerate(names):
        mine = drawn[role == number]
        size = int(mine["length"].sum())
        figures[name] = {"rows": len(mine), "passes": passes[name], "tokens": size,
                         "trained_tokens": int(mine["trained"].sum()),
                         "share": round(size / int(sizes.sum()), 4)}
    read = partial(_read_blocks, tokens=[tokens[name] for name in names], role=role, pieces=drawn,
                   borders=borders)
    return table.with_transform(read), figures


def _read_blocks(batch: dict, tokens: list[RoleTokens], role: np.ndarray, pieces: np.ndarray,
                 borders: np.ndarray) -> dict[str, list]:
    """The blocks of a batch from the roles' cached tokens, when training reaches them."""
    parts = [slice(borders[block], borders[block + 1]) for block in batch["block"]]
    blocks = [join_rows([tokens[which].read(number, start, length) for which, (number, start, length, _)
                         in zip(role[part], pieces[part].tolist(), strict=True)]) for part in parts]
    return {name: [block[name] for block in blocks] for name in ("input_ids", "labels", "seq_lengths")}


def mix_rows(lengths: dict[str, np.ndarray], shares: dict[str, float], epochs: float, seed: int,
             times: dict[str, np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray, dict]:
    """A stage's training order: of each drawn row its role's number in `shares` and its own; and the passes.

    Shares are parts of the tokens: rows differ too much in length for shares of rows to mean anything. An
    epoch is one pass over the first role of `shares`; the others are drawn to their share, and again in
    another order once all their rows were used. Every role is spread evenly. `times` says how often each row
    is drawn in one pass (default: once).
    """
    once = {role: np.repeat(np.arange(len(sizes), dtype=np.int32), 1 if times is None else times[role])
            for role, sizes in lengths.items()}
    first = next(iter(shares))
    wanted = int(lengths[first][once[first]].sum()) * epochs
    roles, rows, positions, passes = [], [], [], {}
    for number, (role, share) in enumerate(shares.items()):
        order = random.Random(f"{seed} {role}")
        drawn = _draw(once[role], lengths[role], wanted * share / shares[first], order)
        jitter = np.fromiter((order.random() for _ in range(len(drawn))), float, len(drawn))
        roles.append(np.full(len(drawn), number, dtype=np.int8))
        rows.append(drawn)
        positions.append((np.arange(len(drawn)) + jitter) / len(drawn))
        passes[role] = round(len(drawn) / len(once[role]), 3)
    roles, rows, positions = map(np.concatenate, (roles, rows, positions))
    # of rows at the same position, those come first whose role's name does
    rank = np.argsort(np.argsort(list(shares))).astype(np.int8)
    order = np.lexsort((rank[roles], positions))
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
