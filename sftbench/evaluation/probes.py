"""Probes: what a model knows, as loss in nats per token and as greedy answers. Nothing is trained here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..data.chat_template import end_of_turn_ids
from ..data.packing import collate_batch, join_rows
from ..data.tokenization import IGNORE_INDEX, EncodedRow, encode_prompt, probe_pieces
from ..models.logits import select_logits
from .reading import read_answer

ANSWERS_PER_BATCH = 64
TOKENS_PER_BATCH = 8192  # of a probe's batch, padding included
LOGITS_PER_BATCH = 25 * 10**6  # 0.1 GB in float32: a large vocabulary's logits outgrow all else


def mean_loss(model, encoded: list[EncodedRow], pad_token_id: int) -> float:
    """Mean loss in nats per trained token over all rows, each row by itself; rows are batched by length."""
    count = sum(label != IGNORE_INDEX for row in encoded for label in row.labels[1:])
    return sum(row_nats(model, encoded, pad_token_id)) / count


def probe_losses(model, tokenizer: PreTrainedTokenizerBase,
                 probes: dict[str, list[EncodedRow]]) -> dict[str, float]:
    """The `mean_loss` of each role's rows."""
    return {role: mean_loss(model, rows, tokenizer.pad_token_id) for role, rows in probes.items()}


def row_nats(model, encoded: list[EncodedRow], pad_token_id: int) -> list[float]:
    """What each row costs, in order: the sum over its trained tokens of their negative log-likelihood."""
    return score_rows(model, encoded, pad_token_id)[0]


@torch.no_grad()
def score_rows(model, encoded: list[EncodedRow], pad_token_id: int) -> tuple[list[float], list[list[int]]]:
    """The `row_nats`, and in each row's trained places the token that the model itself would put there."""
    training, nats, likeliest = model.training, [0.0] * len(encoded), [[]] * len(encoded)
    model.eval()
    for numbers in _batches(encoded, model.config.get_text_config().vocab_size):
        blocks = [join_rows([encoded[number].cut()]) for number in numbers]
        batch = collate_batch(blocks, pad_token_id, packed=False)
        batch = {name: values.to(model.device) for name, values in batch.items()}
        labels = batch.pop("labels").roll(-1, dims=1)  # the first token of a row is no label
        scored = labels != IGNORE_INDEX
        logits = select_logits(model, scored, **batch).float()
        costs = cross_entropy(logits, labels[scored], reduction="none")
        sums = costs.new_zeros(len(numbers)).index_add(0, scored.nonzero()[:, 0], costs)
        tokens = logits.argmax(-1).split(scored.sum(1).tolist())
        for number, cost, chosen in zip(numbers, sums.tolist(), tokens, strict=True):
            nats[number], likeliest[number] = cost, chosen.tolist()
    model.train(training)
    return nats, likeliest


def answer_beginnings(encoded: list[EncodedRow],
                      likeliest: list[list[int]]) -> dict[tuple[int, ...], list[int]]:
    """By prompt (its tokens) how the greedy answer begins, known from what `score_rows` gave.

    As far as the model's own tokens are the wanted ones it would have written these, then its first other.
    """
    known = {}
    for row, own in zip(encoded, likeliest, strict=True):
        trained = [place for place in range(1, len(row.labels)) if row.labels[place] != IGNORE_INDEX]
        starts = [place for place in trained if row.labels[place - 1] == IGNORE_INDEX]  # of each answer
        wanted = [row.labels[place] for place in trained if starts and place >= starts[-1]]
        own = own[len(own) - len(wanted):]
        same = next((place for place, token in enumerate(own) if token != wanted[place]), len(own))
        known[tuple(row.input_ids[:starts[-1] if starts else 0])] = own[:same + 1]
    return known


def scoring_bytes(encoded: list[EncodedRow], vocabulary: int) -> int:
    """Memory of the largest batch of `row_nats` beside the model: its logits, a copy, their logarithms."""
    tokens = [sum(encoded[number].trained for number in numbers) for numbers in _batches(encoded, vocabulary)]
    return 3 * 4 * vocabulary * max(tokens, default=0)


def _batches(encoded: list[EncodedRow], vocabulary: int):
    """Rows' numbers in batches of like length, limited in tokens (padding included) and in logits."""
    lengths, batch, logits = [len(row.input_ids) for row in encoded], [], 0
    for number in sorted(range(len(encoded)), key=lambda number: -lengths[number]):
        more = encoded[number].trained * vocabulary
        if batch and (lengths[batch[0]] * (len(batch) + 1) > TOKENS_PER_BATCH
                      or logits + more > LOGITS_PER_BATCH):
            yield batch
            batch, logits = [], 0
        batch.append(number)
        logits += more
    if batch:
        yield batch


def bare_generation_config(ends: list[int], pad_token_id: int, max_new_tokens: int) -> GenerationConfig:
    """Greedy generation that stops at these ends, and nothing else: what answers are compared under."""
    return GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=max_new_tokens,
                            eos_token_id=sorted(ends), pad_token_id=pad_token_id)


@torch.no_grad()
def generate_tokens(model, batch: dict, config: GenerationConfig) -> torch.Tensor:
    """The tokens that follow each row of `batch` (padded on the left), generated under `config` alone.

    transformers (5.23) fills what a given configuration leaves open from the model's own, where models are
    published with a repetition_penalty, min_new_tokens or suppressed tokens; so that is put aside meanwhile.
    """
    # PEFT (0.21) forwards the attribute of what it wraps, and sets it on the wrong module for a prefix
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, owner.generation_config = owner.generation_config, config
    try:
        tokens = model.generate(**batch, generation_config=config)
    finally:
        owner.generation_config = own
    return tokens[:, batch["input_ids"].shape[1]:]


def generate_answers(model, tokenizer: PreTrainedTokenizerBase, questions: list[list[dict] | dict],
                     max_new_tokens: int) -> list[str]:
    """Greedy answers, in order, to conversations that end with a question or its wanted, unseen answer.

    A question is a list of messages, or a row with `messages` and perhaps `tools`.
    """
    return [answer.text for answer in complete_answers(model, tokenizer, questions, max_new_tokens)]


class Answer(NamedTuple):
    """What a model answers, and whether it was cut at max_new_tokens before it ended by itself."""

    text: str
    cut: bool
    spoken: str  # without thoughts: what is scored


def complete_answers(model, tokenizer: PreTrainedTokenizerBase, questions: list[list[dict] | dict],
                     max_new_tokens: int,
                     known: Mapping[tuple[int, ...], list[int]] = MappingProxyType({})) -> list[Answer]:
    """As `generate_answers`, with whether each was cut; `known` are `answer_beginnings`, not written again.

    The model's published generation settings change nothing; of them only the end tokens are used.
    """
    if not questions:  # which transformers (5.23) decodes as one empty text
        return []
    training, own = model.training, model.generation_config.eos_token_id
    ends = {*end_of_turn_ids(tokenizer), *(own if isinstance(own, list) else [own])} - {None}
    model.eval()
    prompts = [encode_prompt(tokenizer, question) for question in questions]
    written = [_until(ends, known.get(tuple(prompt), []))[:max_new_tokens] for prompt in prompts]
    open_ones = [number for number, ids in enumerate(written)
                 if len(ids) < max_new_tokens and ends.isdisjoint(ids)]
    open_ones.sort(key=lambda number: len(prompts[number]) + len(written[number]))
    for start in range(0, len(open_ones), ANSWERS_PER_BATCH):
        chunk = open_ones[start:start + ANSWERS_PER_BATCH]
        batch = tokenizer.pad({"input_ids": [prompts[number] + written[number] for number in chunk]},
                              padding_side="left", return_tensors="pt").to(model.device)
        most = max_new_tokens - min(len(written[number]) for number in chunk)
        config = bare_generation_config(list(ends), tokenizer.pad_token_id, most)
        for number, ids in zip(chunk, generate_tokens(model, batch, config).tolist(), strict=True):
            written[number] = (written[number] + ids)[:max_new_tokens]
    model.train(training)
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    return [Answer(text.strip(), ends.isdisjoint(ids), read_answer(tokenizer, ids, prompt))
            for text, ids, prompt in zip(texts, written, prompts, strict=True)]


def _until(ends: set[int], ids: list[int]) -> list[int]:
    """The tokens up to the first end, which is one of them."""
    return ids[:next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))]


class RowAnswer(NamedTuple):
    """What a model makes of a probe's row: its loss in nats over `tokens`, and for tasks its answer.

    `nats` is None where the row is longer than max_length.
    """

    nats: float | None
    tokens: int
    answer: str | None = None
    spoken: str | None = None  # of the answer without thoughts: what is scored
    cut: bool = False


def answer_probe(model, tokenizer: PreTrainedTokenizerBase, rows: list[dict], max_length: int,
                 max_new_tokens: int) -> list[RowAnswer]:
    """What the model makes of each row, in order; see `RowAnswer`."""
    pieces, _ = probe_pieces(tokenizer, rows, max_length)
    encoded = [piece for _, piece in pieces]
    nats, likeliest = score_rows(model, encoded, tokenizer.pad_token_id)
    costs, tokens = [None] * len(rows), [0] * len(rows)
    for (number, piece), cost in zip(pieces, nats, strict=True):  # a row may have several answers, or pieces
        costs[number], tokens[number] = (costs[number] or 0.0) + cost, tokens[number] + piece.trained
    if not rows or "text" in rows[0]:
        return list(map(RowAnswer, costs, tokens))
    known = answer_beginnings(encoded, likeliest)
    answers = complete_answers(model, tokenizer, rows, max_new_tokens, known=known)
    return [RowAnswer(cost, count, answer.text, answer.spoken, answer.cut)
            for cost, count, answer in zip(costs, tokens, answers, strict=True)]
