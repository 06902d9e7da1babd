"""The built-in general probe: its rows are sound, its scores right on a model computed by hand, its place."""

import math
from collections import Counter

import pytest
import torch

from sftbench.evaluation import yardstick
from sftbench.evaluation.probes import row_nats
from sftbench.evaluation.yardstick import (
    LANGUAGES,
    PROMPTS,
    encode_options,
    encode_questions,
    score_options,
    score_yardstick,
    yardstick_rows,
)
from sftbench.models.loading import load_model
from sftbench.recipes.hyperparameters import YARDSTICK_LENGTH, resolve_recipe
from sftbench.recipes.recipe import Recipe, override
from sftbench.reports.ledger import format_ledger
from sftbench.runs.folder import read_result
from sftbench.training.chain import run_chain
from tests.conftest import FAMILIES
from tests.test_hyperparameters import facts

TEXTS, QUESTIONS = yardstick_rows("texts"), yardstick_rows("questions")


def test_the_rows_are_many_balanced_and_of_both_languages():
    assert Counter(row["language"] for row in TEXTS) == {"en": 60, "zh": 60}
    assert Counter(row["language"] for row in QUESTIONS) == {"en": 90, "zh": 90}
    assert Counter(row["answer"] for row in QUESTIONS) == dict.fromkeys(range(4), 45)
    for language in LANGUAGES:
        topics = Counter(row["topic"] for row in QUESTIONS if row["language"] == language)
        assert len(topics) == 11 and max(topics.values()) <= 90 / 7


def test_no_row_stands_twice_and_none_is_long():
    questions = [row["question"] for row in QUESTIONS]
    assert len(set(questions)) == len(questions) and len({row["text"] for row in TEXTS}) == len(TEXTS)
    for row in QUESTIONS:
        assert len(row["options"]) == len({option.strip().lower() for option in row["options"]}) == 4
    room = YARDSTICK_LENGTH - 24  # a prefix and the first token take positions as well
    assert max(len(row["text"].encode()) for row in TEXTS) <= room
    assert max(len(PROMPTS[row["language"]].format(row["question"]).encode())
               + max(len(option.encode()) for option in row["options"]) for row in QUESTIONS) <= room


def test_each_row_is_in_the_language_it_claims():
    for row in (*TEXTS, *QUESTIONS):
        words = row.get("text") or row["question"] + "".join(row["options"])
        chinese = sum("\u4e00" <= character <= "\u9fff" for character in words)
        assert (chinese > len(words) / 3) if row["language"] == "zh" else chinese == 0, row
        if row["language"] == "zh":
            assert not set(",;?") & set(words), row


def test_the_right_option_shows_neither_by_place_nor_by_length():
    """Whoever always takes one place, the longest option or the shortest one gets little over a quarter."""
    sizes = [[len(option) for option in row["options"]] for row in QUESTIONS]
    for choose in (max, min):
        guess = [length.index(choose(length)) for length in sizes]
        right = sum(index == row["answer"] for index, row in zip(guess, QUESTIONS, strict=True))
        assert right / len(QUESTIONS) < 0.36


@pytest.fixture
def unigram(make_model, tokenizer):
    """A model that gives each token a fixed probability, whatever precedes it; and their nats."""
    model = load_model(make_model())
    generator = torch.Generator().manual_seed(3)
    nats = -torch.log_softmax(2 * torch.randn(len(tokenizer), generator=generator), 0)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(torch.zeros(len(tokenizer), 64))
        head.bias = torch.nn.Parameter(-nats)
    return model, nats.tolist()


def test_scores_are_what_a_hand_computes(unigram, tokenizer):
    model, nats = unigram

    def cost(text):
        return sum(nats[token] for token in tokenizer(text)["input_ids"])
    scores = score_yardstick(model, tokenizer)
    total = sum(cost(row["text"]) for row in TEXTS)
    assert scores["loss"] == pytest.approx(
        total / sum(len(tokenizer(row["text"])["input_ids"]) for row in TEXTS), rel=1e-4)
    for language in ("en", "zh"):
        texts = [row["text"] for row in TEXTS if row["language"] == language]
        assert scores[f"nats_per_character_{language}"] == pytest.approx(
            sum(map(cost, texts)) / sum(map(len, texts)), rel=1e-4)
    sure, possible = [], []  # options of the same tokens in another order cost the same here
    for row in QUESTIONS:
        prompt = (f"Question: {row['question']}\nAnswer: " if row["language"] == "en"
                  else f"问题：{row['question']}\n答案：")
        costs = [(cost(prompt + option) - cost(prompt.rstrip(" "))) / len(option.encode("utf-8"))
                 for option in row["options"]]
        right = costs.pop(row["answer"])
        sure.append(right < min(costs) - 1e-4)
        possible.append(right < min(costs) + 1e-4)
    assert sum(possible) - sum(sure) < 12
    for name, part in (("accuracy", slice(180)), ("accuracy_en", slice(90)), ("accuracy_zh", slice(90, 180))):
        count = len(sure[part])
        assert sum(sure[part]) - 0.1 <= scores[name] * count <= sum(possible[part]) + 0.1
    assert 0.1 < scores["accuracy"] < 0.45


def test_an_option_is_scored_from_its_first_token_to_its_last(tokenizer):
    row = next(row for row in QUESTIONS if row["question"] == "What is 9 times 6?")
    encoded = encode_options(tokenizer, row)
    assert [tokenizer.decode([label for label in option.labels if label != -100]) for option in encoded] == [
        " " + option for option in row["options"]]
    assert all(option.input_ids[0] == tokenizer.eos_token_id and option.labels[0] == -100
               for option in encoded)


@pytest.mark.parametrize("family", FAMILIES)
def test_options_after_their_question_cost_what_they_cost_whole(make_model, tokenizer, monkeypatch, family):
    model = load_model(make_model(family))
    questions = encode_questions(tokenizer)[::9]
    shared = score_options(model, questions, 0)
    monkeypatch.setattr(yardstick, "_shared_nats", lambda *_: None)
    whole = score_options(model, questions, 0)
    for some, others in zip(shared, whole, strict=True):
        assert some == pytest.approx(others, abs=1e-3) and len(some) == 4


def test_options_are_computed_whole_where_the_cache_gives_something_else(make_model, tokenizer, monkeypatch):
    model, questions = load_model(make_model()), encode_questions(tokenizer)[:6]
    whole = [row_nats(model, options, 0) for options in questions]
    monkeypatch.setattr(yardstick, "_shared_nats", lambda model, options, *_: [1.0] * len(options))
    for some, others in zip(score_options(model, questions, 0), whole, strict=True):
        assert some == pytest.approx(others, abs=1e-3)


@pytest.mark.parametrize(("known", "on", "words"), [
    ({"rows": {"domain_text": 9, "domain_tasks": 9}}, True, "no general data"),
    ({"rows": {"domain_tasks": 9, "general_text": 9}}, False, "your own general data"),
    ({"rows": {"domain_tasks": 9, "general_tasks": 0}}, False, "your own general data"),
    ({"pocket": True, "rows": {"domain_tasks": 9}}, False, "pocket"),
    ({"context": 128}, False, "positions"),
])
def test_it_is_on_where_nothing_else_measures_forgetting(known, on, words):
    recipe, reasons = resolve_recipe(Recipe(), facts(known))
    assert recipe.yardstick is on and words in reasons["yardstick"].reason
    stated = override(Recipe(), yardstick=not on)
    assert resolve_recipe(stated, facts(known))[0].yardstick is not on


@pytest.mark.slow
def test_it_has_its_own_column_and_is_absent_when_off(make_model, small_files, tmp_path):
    values = {"mode": "1", "model": make_model(), "max_steps": 2, "probe_rows": 4,
            "domain_tasks": small_files["domain_tasks"]}
    on = run_chain(override(Recipe(), **values, output_dir=str(tmp_path / "on")))
    result = read_result(on)
    assert result["recipe"]["yardstick"] is True
    before, after = result["start"]["probes"], result["stages"][0]["probes"]
    for probes in (before, after):
        assert set(probes) == {"domain_tasks", "yardstick"}
        assert all(math.isfinite(value) for value in probes["yardstick"].values())
    assert before["yardstick"]["loss"] != after["yardstick"]["loss"]
    text = format_ledger(on)
    assert text.splitlines()[3].split()[-1] == "yardstick" and "questions right: English" in text
    assert max(map(len, text.splitlines())) <= 100
    off = run_chain(override(Recipe(), **values, yardstick=False, output_dir=str(tmp_path / "off")))
    result = read_result(off)
    assert (
        set(result["start"]["probes"]) == {"domain_tasks"} and "yardstick" not in format_ledger(off).lower()
    )
    assert result["stages"][0]["reused"], "the yardstick decides nothing of the training"
    again = read_result(run_chain(override(Recipe(), **values, output_dir=str(tmp_path / "again"))))
    assert "yardstick" in again["stages"][0]["probes"]
