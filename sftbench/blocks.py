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

from .errors import BadInput

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


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict], ask: bool = False) -> str:
    """Messages through the model's own chat template; `ask` opens the assistant's turn at the end."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)


def segments(tokenizer: PreTrainedTokenizerBase, row: dict) -> list[tuple[str, bool]]:
    """The row as pieces of text, each with whether it is trained; joined they are the whole rendered row.

    An answer's piece ends with its end token. Raises BadInput where the template shows a turn differently
    once more turns follow, since then no mask over the whole would be true.
    """
    if "text" in row:
        return [(row["text"] + tokenizer.eos_token, True)]
    messages, pieces, done = row["messages"], [], ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:number], ask=True)
        whole = render(tokenizer, messages[:number + 1])
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            raise BadInput("the model's chat template rewrites earlier turns, so this row of several turns "
                           "cannot be masked; give one row per answer")
        answer, rest = _ended(whole[len(prompt):], message["content"], tokenizer.eos_token)
        pieces += [(prompt[len(done):], False), (answer, True), (rest, False)]
        done = whole
    return [piece for piece in pieces if piece[0]]


def _ended(rendered: str, content: str, eos: str) -> tuple[str, str]:
    """An answer as the template shows it, cut after its end token (else `eos` is added), and what follows."""
    before, end, rest = rendered.partition(eos)
    if end:
        return before + end, rest
    start = rendered.rfind(content.strip()) + len(content.strip())
    end = rendered[start:].rstrip()  # the template's own end token, which is not the tokenizer's
    return rendered[:start] + (end or eos), rendered[start + len(end):]


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens at which an answer is over: the tokenizer's end token, and the one the template trains."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    trained = [label for label in encode(tokenizer, {"messages": turns}).labels if label != IGNORED]
    return sorted({tokenizer.eos_token_id, trained[-1]})


def encode(tokenizer: PreTrainedTokenizerBase, row: dict) -> Encoded:
    """One row as tokens and labels; prompt and answer are tokenised apart, as when the model answers."""
    ids, labels = [], []
    for text, trained in segments(tokenizer, row):
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += piece
        labels += piece if trained else [IGNORED] * len(piece)
    begin = _missing_bos(tokenizer, ids)
    return Encoded(begin + ids, [IGNORED] * len(begin) + labels)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> list[int]:
    """The tokens after which the model answers, exactly those that stand before an answer in training."""
    ids = tokenizer(render(tokenizer, messages, ask=True), add_special_tokens=False)["input_ids"]
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
    for row in rows:
        whole = encode(tokenizer, row)
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
    encoded = encode(tokenizer, row)
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    runs = [(trained, [token for token, _ in run])
            for trained, run in itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED)]
    return "".join(f"«{tokenizer.decode(tokens)}»" if trained else tokenizer.decode(tokens)
                   for trained, tokens in runs)
