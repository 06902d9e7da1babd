"""Rows to blocks of tokens: encode with a mask, mix roles by share, pack, pad. All the model sees is here.

A label of -100 is not trained. Text trains on all its tokens, tasks on the answers and their end token only.
In a packed block every row begins anew: its positions start at 0 and attention does not cross its border.
"""

import itertools
import random
from collections import Counter
from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from . import template

IGNORED = -100
OPEN_BLOCKS = 32  # blocks kept open while packing: enough to fill them to 97 %, few enough to keep the order


@dataclass(frozen=True)
class Encoded:
    """One row as tokens: `input_ids`, and `labels` of the same length with -100 where nothing is trained."""

    input_ids: list[int]
    labels: list[int]

    @property
    def trained(self) -> int:
        """Tokens that are predicted and trained; the first of a row has nothing before it."""
        return sum(label != IGNORED for label in self.labels[1:])


def encode_all(tokenizer: PreTrainedTokenizerBase, row: dict) -> list[Encoded]:
    """One row as tokens: one `Encoded`, or one an answer where the template rewrites earlier turns.

    Prompt and answer are tokenised apart, as when the model answers.
    """
    return [_encode(tokenizer, text) for text in template.pieces(tokenizer, row)]


def encode(tokenizer: PreTrainedTokenizerBase, row: dict) -> Encoded:
    """The last of `encode_all`: the whole row, where the template does not rewrite earlier turns."""
    return encode_all(tokenizer, row)[-1]


def _encode(tokenizer: PreTrainedTokenizerBase, text: list[tuple[str, bool]]) -> Encoded:
    ids, labels = [], []
    for part, trained in text:
        piece = tokenizer(part, add_special_tokens=False)["input_ids"]
        ids += piece
        labels += piece if trained else [IGNORED] * len(piece)
    begin = _missing_bos(tokenizer, ids)
    return Encoded(begin + ids, [IGNORED] * len(begin) + labels)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> list[int]:
    """The tokens after which the model answers, exactly those that stand before an answer in training."""
    ids = tokenizer(template.asked(tokenizer, messages), add_special_tokens=False)["input_ids"]
    return _missing_bos(tokenizer, ids) + ids


def _missing_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """The beginning-of-sequence token, where the tokenizer sets it and the template has not: never twice."""
    bos = tokenizer.bos_token_id
    wanted = bos is not None and tokenizer("")["input_ids"][:1] == [bos]
    return [bos] if wanted and ids[:1] != [bos] else []


def encode_rows(tokenizer: PreTrainedTokenizerBase, rows: list[dict],
                max_length: int) -> tuple[list[Encoded], dict]:
    """All rows as tokens, and how many were too long: text is then cut into rows, a task is dropped."""
    encoded, counts = [], Counter()
    for whole, is_text in ((one, "text" in row) for row in rows for one in encode_all(tokenizer, row)):
        if is_text:
            starts = range(0, len(whole.input_ids), max_length)
            counts["text cut"] += len(starts) > 1
            pieces = [Encoded(whole.input_ids[start:start + max_length],
                              whole.labels[start:start + max_length]) for start in starts]
            encoded += [piece for piece in pieces if piece.trained]
        elif len(whole.input_ids) > max_length:
            counts["task longer than max_length"] += 1
        elif not whole.trained:
            counts["nothing to train"] += 1
        else:
            encoded.append(whole)
    return encoded, {reason: count for reason, count in counts.items() if count}


def mix(encoded: dict[str, list[Encoded]], shares: dict[str, float], epochs: float,
        seed: int) -> tuple[list, dict]:
    """All rows of a stage in training order, and what was drawn from each role.

    Shares are parts of the tokens. An epoch is one pass over the first role of `shares`; the others are drawn
    to their share, and anew in another order once all their rows were used. Every role is spread evenly.
    """
    first = next(iter(shares))
    wanted = sum(len(row.input_ids) for row in encoded[first]) * epochs
    placed, drawn = [], {}
    for role, share in shares.items():
        order = random.Random(f"{seed} {role}")
        rows = _draw(encoded[role], wanted * share / shares[first], order)
        placed += [((number + order.random()) / len(rows), role, row) for number, row in enumerate(rows)]
        drawn[role] = {"rows": len(rows), "passes": round(len(rows) / len(encoded[role]), 3),
                       "tokens": sum(len(row.input_ids) for row in rows),
                       "trained_tokens": sum(row.trained for row in rows)}
    whole = sum(entry["tokens"] for entry in drawn.values())
    for entry in drawn.values():
        entry["share"] = round(entry["tokens"] / whole, 4)
    return [row for _, _, row in sorted(placed, key=lambda item: item[:2])], drawn


def _draw(rows: list[Encoded], tokens: float, order: random.Random) -> list[Encoded]:
    """Rows in shuffled passes until the wanted number of tokens is reached, one row at least."""
    drawn, have = [], 0
    while have < tokens or not drawn:
        for row in order.sample(rows, len(rows)):
            drawn.append(row)
            have += len(row.input_ids)
            if have >= tokens:
                break
    return drawn


def pack(rows: list[Encoded], max_length: int) -> list[list[Encoded]]:
    """Rows in blocks of at most `max_length` tokens, nearly in order: first fit among the open blocks."""
    done, still_open = [], []
    for row in rows:
        size = len(row.input_ids)
        place = next((block for block in still_open if block[0] + size <= max_length), None)
        if place is None:
            if len(still_open) == OPEN_BLOCKS:
                fullest = max(still_open, key=lambda block: block[0])
                still_open.remove(fullest)
                done.append(fullest[1])
            place = [0, []]
            still_open.append(place)
        place[0] += size
        place[1].append(row)
    return done + [block for _, block in still_open]


def to_dataset(blocks: list[list[Encoded]]) -> Dataset:
    """Blocks as a dataset with `input_ids`, `labels` and `seq_lengths` (tokens of each row in the block).

    The first token of every row is not a label: in a packed block it would be predicted from the row before.
    """
    return Dataset.from_dict({
        "input_ids": [[token for row in block for token in row.input_ids] for block in blocks],
        "labels": [[label for row in block for label in (IGNORED, *row.labels[1:])] for block in blocks],
        "seq_lengths": [[len(row.input_ids) for row in block] for block in blocks]})


def collate(examples: list[dict], pad_token_id: int, packed: bool) -> dict[str, torch.Tensor]:
    """A batch (blocks × longest block) of `input_ids` and `labels`, padded on the right, padding not trained.

    Packed: `position_ids` that start at 0 in every row, and no attention mask, from which transformers builds
    attention that stays within a row. Else: an `attention_mask`, which a prefix before the row needs.
    """
    width = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([list(example[name]) + [filler] * (width - len(example[name]))
                             for example in examples])

    batch = {"input_ids": padded("input_ids", pad_token_id), "labels": padded("labels", IGNORED)}
    if packed:
        batch["position_ids"] = torch.tensor([
            [position for length in (*example["seq_lengths"], width - len(example["input_ids"]))
             for position in range(length)] for example in examples])
    else:
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        batch["attention_mask"] = (torch.arange(width)[None] < lengths[:, None]).long()
    return batch


def look(tokenizer: PreTrainedTokenizerBase, row: dict) -> str:
    """The row as the model sees it, special tokens and all; «…» is trained, the rest is only read."""
    return "\n".join(_look(tokenizer, encoded) for encoded in encode_all(tokenizer, row))


def _look(tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> str:
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    runs = [(trained, [token for token, _ in run])
            for trained, run in itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED)]
    return "".join(f"«{tokenizer.decode(tokens)}»" if trained else tokenizer.decode(tokens)
                   for trained, tokens in runs)
