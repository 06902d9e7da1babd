"""Rows to blocks of tokens: encode with a mask, mix roles by share, pack, pad. All the model sees is here.

A label of -100 is not trained. Text trains on all its tokens, tasks on the answers and their end token only.
In a packed block every row begins anew: its positions start at 0 and attention does not cross its border.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from . import mixing, template
from .errors import BadInput

IGNORED = -100


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
    return encode_batch(tokenizer, [row])[0]


def encode(tokenizer: PreTrainedTokenizerBase, row: dict) -> Encoded:
    """The last of `encode_all`: the whole row, where the template does not rewrite earlier turns."""
    return encode_all(tokenizer, row)[-1]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> list[int]:
    """The tokens after which the model answers, exactly those that stand before an answer in training."""
    return tokenizer(template.asked(tokenizer, messages), add_special_tokens=False)["input_ids"]


def encode_batch(tokenizer: PreTrainedTokenizerBase, rows: list[dict],
                 where: Callable[[int], str] | None = None) -> list[list[Encoded]]:
    """Rows as `encode_all` gives each, tokenised in one call, which is faster.

    Raises BadInput for a row that cannot be shown to the model; `where` tells the place of row i for it.
    """
    begin = [tokenizer.bos_token_id] if template.adds_bos(tokenizer) else []
    shown = []
    for index, row in enumerate(rows):
        try:
            shown.append(template.pieces(tokenizer, row))
        except BadInput as error:
            raise BadInput(f"{where(index)}: {error}" if where else str(error)) from None
    parts = [part for texts in shown for text in texts for part, _ in text]
    tokens = iter(tokenizer(parts, add_special_tokens=False)["input_ids"] if parts else [])
    return [[_joined(text, tokens, begin if "text" in row else []) for text in texts]
            for row, texts in zip(rows, shown, strict=True)]


def _joined(text: list[tuple[str, bool]], tokens: Iterator[list[int]], begin: list[int]) -> Encoded:
    """A text from the tokens of its pieces, with the beginning-of-sequence token if it has to stand there."""
    ids, labels = [], []
    for _, trained in text:
        piece = next(tokens)
        ids += piece
        labels += piece if trained else [IGNORED] * len(piece)
    if begin and ids[:1] != begin:
        return Encoded(begin + ids, [IGNORED, *labels])
    return Encoded(ids, labels)


def encode_rows(tokenizer: PreTrainedTokenizerBase, rows: list[dict],
                max_length: int) -> tuple[list[Encoded], dict]:
    """A probe's rows as tokens, and how many were too long: text is then cut into rows, a task is dropped."""
    encoded, counts = [], Counter()
    pairs = zip(rows, encode_batch(tokenizer, rows), strict=True)
    for row, whole in ((row, one) for row, texts in pairs for one in texts):
        if "text" in row:
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
        seed: int) -> tuple[list[Encoded], dict]:
    """Rows at hand in the order of `mixing.mix`, and the passes of each role."""
    lengths = {role: np.array([len(row.input_ids) for row in rows]) for role, rows in encoded.items()}
    roles, rows, passes = mixing.mix(lengths, shares, epochs, seed)
    names = list(shares)
    return [encoded[names[role]][row] for role, row in zip(roles, rows, strict=True)], passes


def pack(rows: list[Encoded], max_length: int) -> list[list[Encoded]]:
    """Rows at hand in the blocks of `mixing.pack`."""
    order, borders = mixing.pack([len(row.input_ids) for row in rows], max_length)
    return [[rows[index] for index in order[start:end]]
            for start, end in itertools.pairwise(borders.tolist())]


def to_dataset(blocks: list[list[Encoded]]) -> Dataset:
    """Blocks as a dataset: `input_ids`, `labels`, `seq_lengths` (tokens of each row), `tokens` (of all).

    The first token of every row is not a label: in a packed block it would be predicted from the row before.
    """
    return Dataset.from_dict({
        "input_ids": [[token for row in block for token in row.input_ids] for block in blocks],
        "labels": [[label for row in block for label in (IGNORED, *row.labels[1:])] for block in blocks],
        "seq_lengths": [[len(row.input_ids) for row in block] for block in blocks],
        "tokens": [sum(len(row.input_ids) for row in block) for block in blocks]})


def block_tokens(dataset: Dataset) -> np.ndarray:
    """The tokens of each block, without reading the blocks."""
    return dataset.data.column("tokens").to_numpy()


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
