"""The yardstick: a general probe that comes with sftbench, for runs whose user has no general data.

120 short texts and 180 questions with four options, half English and half Chinese, written for this project
(`yardstick_texts.jsonl`, `yardstick_questions.jsonl`). They are never trained on and never mixed with a probe
of the user's. Changing a row changes what all later scores mean, so the rows are part of the scores' key.

Options are compared by nats, not by generated answers: a base model that follows no instruction ranks them
too.
"""

import json
import os
from functools import cache
from pathlib import Path
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from ..data.rows import digest_rows
from ..data.tokenization import IGNORE_INDEX, EncodedRow
from .probes import row_nats

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


def score_yardstick(model, tokenizer: PreTrainedTokenizerBase) -> dict:
    """The model's scores: `loss` and `accuracy`, and by language `nats_per_character_…` and `accuracy_…`.

    `loss` is in nats per token of the texts, so it compares states of one model. A tokenizer that splits a
    Chinese character into three tokens makes each of them easy to guess; nats per character add up what all
    of them cost, so they compare models of different tokenizers as well, but only within a language, since a
    Chinese character says more than a letter. Accuracy is the share of questions (0 to 1, 0.25 by chance)
    whose right option is the likeliest: fewest nats by byte, so that its length decides nothing.
    """
    texts, encoded = yardstick_rows("texts"), encode_yardstick(tokenizer)
    nats = row_nats(model, encoded, tokenizer.pad_token_id)
    text_nats, correct = nats[:len(texts)], _correct_answers(nats[len(texts):])
    scores = {"loss": sum(text_nats) / sum(row.trained for row in encoded[:len(texts)]),
              "accuracy": fmean(correct)}
    for language in LANGUAGES:
        costs, sizes = zip(*((cost, len(row["text"])) for cost, row in zip(text_nats, texts, strict=True)
                             if row["language"] == language), strict=True)
        scores[f"nats_per_character_{language}"] = sum(costs) / sum(sizes)
        scores[f"accuracy_{language}"] = fmean(
            hit for hit, row in zip(correct, yardstick_rows("questions"), strict=True)
            if row["language"] == language)
    return {name: round(value, 5) for name, value in scores.items()}


def encode_yardstick(tokenizer: PreTrainedTokenizerBase) -> list[EncodedRow]:
    """All that is scored, as tokens: the texts, then each question with each option."""
    return [*(_encode(tokenizer, _token_ids(tokenizer, row["text"]), 0) for row in yardstick_rows("texts")),
            *(option for row in yardstick_rows("questions") for option in encode_options(tokenizer, row))]


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


def _correct_answers(costs: list[float]) -> list[bool]:
    """For each question whether its right option costs the fewest nats by byte; `costs` are its options'."""
    nats, correct = iter(costs), []
    for row in yardstick_rows("questions"):
        by_byte = [next(nats) / len(option.encode()) for option in row["options"]]
        correct.append(by_byte.index(min(by_byte)) == row["answer"])
    return correct
