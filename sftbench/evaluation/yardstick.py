"""The yardstick: a general probe that comes with sftbench, for runs whose user has no general data.

120 short texts and 180 questions with four options, half English and half Chinese, written for this project
(`yardstick_texts.jsonl`, `yardstick_questions.jsonl`). They are never trained on and never mixed with a probe
of the user's. Changing a row changes what all later scores mean, so the rows are part of the scores' key.
"""

import json
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..data.roles import digest_rows
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
    """What names this set of rows in the key under which scores are kept."""
    return digest_rows([*yardstick_rows("texts"), *yardstick_rows("questions")])


def score_yardstick(model, tokenizer: PreTrainedTokenizerBase) -> dict:
    """The model's scores: `loss` and `accuracy`, and by language `nats_per_character_…` and `accuracy_…`.

    `loss` is in nats per token of the texts, so it compares states of one model. A tokenizer that splits a
    Chinese character into three tokens makes each of them easy to guess; nats per character add up what all
    of them cost, so they compare models of different tokenizers as well, but only within a language, since a
    Chinese character says more than a letter. Accuracy is the share of questions (0 to 1, 0.25 by chance)
    whose right option is the likeliest: fewest nats by byte, so that its length decides nothing.
    """
    texts, whole = yardstick_rows("texts"), encode_yardstick(tokenizer)
    nats = row_nats(model, whole, tokenizer.pad_token_id)
    tokens = sum(row.trained for row in whole[:len(texts)])
    right = _answered(nats[len(texts):])
    scores = {"loss": sum(nats[:len(texts)]) / tokens, "accuracy": sum(right) / len(right)}
    for language in LANGUAGES:
        mine = [number for number, row in enumerate(texts) if row["language"] == language]
        characters = sum(len(texts[number]["text"]) for number in mine)
        scores[f"nats_per_character_{language}"] = sum(nats[number] for number in mine) / characters
        hits = [
            hit
            for hit, row in zip(right, yardstick_rows("questions"), strict=True)
            if row["language"] == language
        ]
        scores[f"accuracy_{language}"] = sum(hits) / len(hits)
    return {name: round(value, 5) for name, value in scores.items()}


def encode_yardstick(tokenizer: PreTrainedTokenizerBase) -> list[EncodedRow]:
    """All that is scored, as tokens: the texts, then each question with each option."""
    return [*(_text(tokenizer, row["text"]) for row in yardstick_rows("texts")),
            *(option for row in yardstick_rows("questions") for option in encode_options(tokenizer, row))]


def _begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A token before every row, from which its first token is predicted: the beginning's, else the end's."""
    begin = tokenizer.bos_token_id
    return [tokenizer.eos_token_id if begin is None else begin]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _text(tokenizer: PreTrainedTokenizerBase, text: str) -> EncodedRow:
    ids = _ids(tokenizer, text)
    return EncodedRow(_begin(tokenizer) + ids, [IGNORE_INDEX, *ids])


def encode_options(tokenizer: PreTrainedTokenizerBase, row: dict) -> list[EncodedRow]:
    """A question with each of its options as tokens; what is scored begins at the same token in all of them.

    Question and option are tokenised together, as a model meets them in running text, and without a chat
    template, so that base and chat models are asked the same.
    """
    prompt = PROMPTS[row["language"]].format(row["question"])
    wholes = [_ids(tokenizer, prompt + GAPS[row["language"]] + option) for option in row["options"]]
    alone = _ids(tokenizer, prompt)
    shared = min(_common(alone, whole) for whole in wholes)
    begin = _begin(tokenizer)
    return [
        EncodedRow(begin + whole, [IGNORE_INDEX] * (len(begin) + shared) + whole[shared:]) for whole in wholes
    ]


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens at the beginning are the same."""
    for number, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return number
    return min(len(one), len(other))


def _answered(costs: list[float]) -> list[bool]:
    """For each question whether its right option costs the fewest nats by byte; `costs` are its options'."""
    nats, right = iter(costs), []
    for row in yardstick_rows("questions"):
        by_byte = [next(nats) / len(option.encode()) for option in row["options"]]
        right.append(by_byte.index(min(by_byte)) == row["answer"])
    return right
