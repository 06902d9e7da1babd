"""Probes: loss per token, greedy answers, scores."""

import pytest
import torch

from sftbench.data.tokenization import encode_row
from sftbench.evaluation import probes
from sftbench.evaluation.probes import exact_match, generate_answers, mean_loss, score_probe, token_f1
from sftbench.models.loading import load_model
from tests.conftest import small_rows


@pytest.fixture(scope="module")
def model(make_model):
    return load_model(make_model("qwen3"))


def test_loss_is_weighed_by_tokens_whatever_the_batch(model, tokenizer, monkeypatch):
    rows = [encode_row(tokenizer, row)[-1]
            for row in small_rows("domain_tasks", 9) + small_rows("domain_text", 5)]
    whole = mean_loss(model, rows, 0)
    single = [(mean_loss(model, [row], 0), row.trained) for row in rows]
    mean = sum(value * count for value, count in single) / sum(count for _, count in single)
    assert whole == pytest.approx(mean, rel=1e-5)
    monkeypatch.setattr(probes, "TOKENS_PER_BATCH", 40)
    assert mean_loss(model, rows, 0) == pytest.approx(whole, rel=1e-5)


def test_answers_do_not_depend_on_their_batch(model, tokenizer):
    questions = [row["messages"][:-1] for row in small_rows("domain_tasks", 7)] + [
        [{"role": "user", "content": "Where " * 20}]]
    together = generate_answers(model, tokenizer, questions, 6)
    assert together == [generate_answers(model, tokenizer, [question], 6)[0] for question in questions]


def test_answers_stop_at_the_end_token(model, tokenizer):
    import copy
    stubborn = copy.deepcopy(model)
    with torch.no_grad():  # a model that says <eos> whatever is asked
        stubborn.get_input_embeddings().weight.zero_()
        stubborn.get_output_embeddings().weight = torch.nn.Parameter(torch.zeros(len(tokenizer), 64))
        stubborn.get_output_embeddings().bias = torch.nn.Parameter(torch.eye(len(tokenizer))[1])
    assert generate_answers(stubborn, tokenizer, [[{"role": "user", "content": "x"}]], 5) == [""]


@pytest.mark.parametrize(("answer", "wanted", "match", "f1"), [
    ("Oslo", "Oslo", 1, 1), ("  Oslo\n", "Oslo", 1, 1), ("oslo.", "Oslo", 0, 1),
    ("in Oslo", "Oslo", 0, 2 / 3), ("Lima", "Oslo", 0, 0), ("", "Oslo", 0, 0), ("a a b", "a b b", 0, 2 / 3),
])
def test_scores(answer, wanted, match, f1):
    assert exact_match(answer, wanted) == match
    assert token_f1(answer, wanted) == pytest.approx(f1)


def test_a_probe_scores_text_by_loss_and_tasks_by_answers_too(model, tokenizer):
    assert set(score_probe(model, tokenizer, small_rows("domain_text", 4), 64, 4)) == {"loss"}
    assert set(score_probe(model, tokenizer, small_rows("domain_tasks", 4), 64, 4)) == {
        "loss", "accuracy", "f1"}
