"""The yardstick: a general probe that comes with sftbench, for runs whose user has no general data.

120 short texts and 180 questions with four options, half English and half Chinese, written for this project
(`yardstick_texts.jsonl`, `yardstick_questions.jsonl`). They are never trained on and never mixed with a probe
of the user's. Changing a row changes what all later scores mean, so the rows are part of the scores' key.

Options are compared by nats, not by generated answers: a base model that follows no instruction ranks them
too.
"""

import itertools
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from operator import sub
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedTokenizerBase

from ..data.rows import digest_rows
from ..data.tokenization import IGNORE_INDEX, EncodedRow
from ..models.logits import select_logits
from ..runs.answers import AnsweredRow
from ..runs.intervals import mean_scores
from .probes import RowAnswer, row_nats

QUESTIONS_PER_BATCH = 16
SAME_NATS = 0.01  # between an option after its question's cache and computed whole; rounding gives 1e-4
LANGUAGES = ("en", "zh")
PROMPTS = {"en": "Question: {}\nAnswer:", "zh": "问题：{}\n答案："}
GAPS = {"en": " ", "zh": ""}  # between prompt and option


@cache
def yardstick_rows(name: str) -> tuple[dict, ...]:
    """The rows of `texts` (language, topic, text) or `questions` (…, question, options, answer: an index)."""
    path = Path(__file__).with_name(f"yardstick_{name}.jsonl")
    return tuple(map(json.loads, path.read_text(encoding="utf-8").splitlines()))


def yardstick_digest() -> str:
    """The name of this set of rows in the key under which scores are stored."""
    return digest_rows([*yardstick_rows("texts"), *yardstick_rows("questions")])


def answer_yardstick(model, tokenizer: PreTrainedTokenizerBase) -> list[RowAnswer]:
    """What the model makes of each text (its nats), and then of each question (the option it prefers).

    That is the likeliest option: fewest nats by byte, so that its length decides nothing.
    """
    encoded = encode_texts(tokenizer)
    nats = row_nats(model, encoded, tokenizer.pad_token_id)
    costs = score_options(model, encode_questions(tokenizer), tokenizer.pad_token_id)
    chosen = [_cheapest_option(*pair) for pair in zip(costs, yardstick_rows("questions"), strict=True)]
    return [*(RowAnswer(cost, row.trained) for cost, row in zip(nats, encoded, strict=True)),
            *(RowAnswer(None, 0, option, option) for option in chosen)]


def rate_yardstick(answers: Sequence[RowAnswer]) -> list[AnsweredRow]:
    """The yardstick's rows with these `answer_yardstick`: texts by their nats, questions right (1) or not."""
    texts, questions = yardstick_rows("texts"), yardstick_rows("questions")
    rows = [{"prompt": row["question"], "wanted": row["options"][row["answer"]]} for row in questions]
    return [AnsweredRow("yardstick", number, **row, answer=answer.answer, spoken=answer.spoken,
                        score=float(answer.answer == row["wanted"]) if row["prompt"] else None,
                        nats=answer.nats, tokens=answer.tokens)
            for number, (row, answer) in enumerate(zip(
                [*({"prompt": "", "wanted": row["text"]} for row in texts), *rows], answers, strict=True), 1)]


def yardstick_scores(rows: list[AnsweredRow]) -> dict[str, float]:
    """The figures: `loss` and `accuracy`, and by language `nats_per_character_…` and `accuracy_…`.

    `loss` is in nats per token of the texts, so it compares states of one model. A tokenizer that splits a
    Chinese character into three tokens makes each of them easy to guess; nats per character add up what all
    of them cost, so they compare models of different tokenizers as well, but only within a language, since a
    Chinese character says more than a letter. Accuracy is the share of questions (0 to 1, 0.25 by chance)
    whose right option is the likeliest.
    """
    scores, texts = mean_scores(rows), yardstick_rows("texts")
    for language in LANGUAGES:
        own = [row for row, about in zip(rows, [*texts, *yardstick_rows("questions")], strict=True)
               if about["language"] == language]
        characters = sum(len(row.wanted) for row in own if row.score is None)
        scores[f"nats_per_character_{language}"] = round(sum(row.nats or 0 for row in own) / characters, 5)
        scores[f"accuracy_{language}"] = mean_scores(own)["accuracy"]
    return scores


def score_yardstick(model, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """The `yardstick_scores` of a model."""
    return yardstick_scores(rate_yardstick(answer_yardstick(model, tokenizer)))


def encode_texts(tokenizer: PreTrainedTokenizerBase) -> list[EncodedRow]:
    """The texts as tokens."""
    return [_encode(tokenizer, _token_ids(tokenizer, row["text"]), 0) for row in yardstick_rows("texts")]


def encode_questions(tokenizer: PreTrainedTokenizerBase) -> list[list[EncodedRow]]:
    """Each question with each of its options, as tokens."""
    return [encode_options(tokenizer, row) for row in yardstick_rows("questions")]


def _encode(tokenizer: PreTrainedTokenizerBase, ids: list[int], prompt: int) -> EncodedRow:
    """Tokens to score after the first `prompt`, and one before all, from which the first is predicted."""
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return EncodedRow([begin, *ids], [IGNORE_INDEX] * (1 + prompt) + ids[prompt:])


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_options(tokenizer: PreTrainedTokenizerBase, row: dict) -> list[EncodedRow]:
    """A question with each of its options as tokens; what is scored begins at the same token in all of them.

    Question and option are tokenised together, as a model meets them in running text, and without a chat
    template, so that base and chat models see the same.
    """
    prompt = PROMPTS[row["language"]].format(row["question"])
    prompt_ids = _token_ids(tokenizer, prompt)
    options = [_token_ids(tokenizer, prompt + GAPS[row["language"]] + option) for option in row["options"]]
    # A tokenizer may join the prompt's last letters with the option's first. `commonprefix` takes any lists.
    shared = len(os.path.commonprefix([prompt_ids, *options]))
    return [_encode(tokenizer, option, shared) for option in options]


@torch.no_grad()
def score_options(model, questions: list[list[EncodedRow]], pad_token_id: int) -> list[list[float]]:
    """What each option of each question costs, in nats; a question is computed once for all its options.

    Questions of one length go together, so that no padding stands before an option. A model whose cache
    cannot be used so (a recurrent state, a prefix) shows it on the first of them, and gets each option whole.
    """
    training, nats, by_length, shared = model.training, [[]] * len(questions), defaultdict(list), None
    for number, options in enumerate(questions):
        by_length[len(options[0].input_ids) - options[0].trained].append(number)
    model.eval()
    for length, numbers in by_length.items():
        for start in range(0, len(numbers), QUESTIONS_PER_BATCH):
            batch = numbers[start:start + QUESTIONS_PER_BATCH]
            options = [option for number in batch for option in questions[number]]
            costs = None if shared is False else _shared_nats(model, options, length, len(questions[0]))
            if not shared:
                whole = row_nats(model, options, pad_token_id)
                shared = costs is not None and max(map(abs, map(sub, whole, costs))) < SAME_NATS
            costs = iter(costs if shared else whole)
            for number in batch:
                nats[number] = list(itertools.islice(costs, len(questions[number])))
    model.train(training)
    return nats


def _shared_nats(model, options: list[EncodedRow], length: int, count: int) -> list[float] | None:
    """The nats of options, `count` in a row with the same first `length` tokens; None where none come."""
    labels = pad_sequence([torch.tensor(option.input_ids[length:]) for option in options], batch_first=True,
                          padding_value=IGNORE_INDEX).to(model.device)
    questions = torch.tensor([option.input_ids[:length] for option in options[::count]], device=model.device)
    last, rest = torch.zeros_like(questions, dtype=torch.bool), labels[:, 1:] != IGNORE_INDEX
    last[:, -1] = True
    try:
        cache = DynamicCache(config=model.config)
        first = select_logits(model, last, input_ids=questions, past_key_values=cache, use_cache=True)
        first = first.float().log_softmax(-1).repeat_interleave(count, dim=0)
        nats = -first.gather(1, labels[:, :1].clamp(min=0))[:, 0] * (labels[:, 0] != IGNORE_INDEX)
        if rest.any():
            cache.batch_repeat_interleave(count)
            positions = torch.arange(length, length + rest.shape[1], device=model.device)
            logits = select_logits(model, rest, input_ids=labels[:, :-1].clamp(min=0), past_key_values=cache,
                                   position_ids=positions.expand(rest.shape), use_cache=True)
            costs = cross_entropy(logits.float(), labels[:, 1:][rest], reduction="none")
            nats = nats.index_add(0, rest.nonzero()[:, 0], costs)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a family's cache makes of it
        return None
    return nats.tolist()


def _cheapest_option(nats: list[float], question: dict) -> str:
    """The option of a question that costs the fewest nats by byte; `nats` are its options'."""
    by_byte = [cost / len(option.encode()) for cost, option in zip(nats, question["options"], strict=True)]
    return question["options"][by_byte.index(min(by_byte))]
