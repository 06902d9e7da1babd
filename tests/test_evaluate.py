"""Probes: loss per token, greedy answers, scores."""

import pytest
import torch
from transformers import GenerationConfig

from sftbench.data.tokenization import IGNORE_INDEX, EncodedRow, encode_prompt, encode_row
from sftbench.evaluation import probes
from sftbench.evaluation.probes import (
    answer_beginnings,
    bare_generation_config,
    complete_answers,
    generate_answers,
    generate_tokens,
    mean_loss,
    score_rows,
)
from sftbench.evaluation.rating import score_probe
from sftbench.models.loading import load_model
from sftbench.models.methods import METHOD_FUNCTIONS
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


@pytest.mark.parametrize("right", [0, 2, 5, 8])
def test_what_the_loss_shows_of_answers_is_not_written_again(model, tokenizer, monkeypatch, right):
    rows = small_rows("domain_tasks", 6)
    prompts = [encode_prompt(tokenizer, row) for row in rows]
    config = bare_generation_config([1], 0, 8)
    answers = [generate_tokens(model, {"input_ids": torch.tensor([prompt])}, config)[0].tolist()
               for prompt in prompts]
    wanted = [ids[:right] + [1] * (right < 8) for ids in answers]  # as the model answers, then otherwise
    encoded = [EncodedRow(prompt + ids, [IGNORE_INDEX] * len(prompt) + ids)
               for prompt, ids in zip(prompts, wanted, strict=True)]
    known = answer_beginnings(encoded, score_rows(model, encoded, 0)[1])
    assert list(known.values()) == [ids[:right + 1] for ids in answers], "and its own next token"
    whole, steps = complete_answers(model, tokenizer, rows, 8), []
    monkeypatch.setattr(probes, "generate_tokens", lambda model, batch, config: steps.append(
        config.max_new_tokens) or generate_tokens(model, batch, config))
    assert complete_answers(model, tokenizer, rows, 8, known=known) == whole
    assert steps == [7 - right] * (right < 7), "nothing is written that is known"


def test_no_questions_have_no_answers(model, tokenizer):
    assert generate_answers(model, tokenizer, [], 6) == []


def test_answers_stop_at_the_end_token(model, tokenizer):
    import copy
    stubborn = copy.deepcopy(model)
    with torch.no_grad():  # a model that says <eos> whatever is asked
        stubborn.get_input_embeddings().weight.zero_()
        stubborn.get_output_embeddings().weight = torch.nn.Parameter(torch.zeros(len(tokenizer), 64))
        stubborn.get_output_embeddings().bias = torch.nn.Parameter(torch.eye(len(tokenizer))[1])
    stubborn.generation_config.update(min_new_tokens=4, min_length=9)
    assert generate_answers(stubborn, tokenizer, [[{"role": "user", "content": "x"}]], 5) == [""]


def test_a_probe_scores_text_by_loss_and_tasks_by_answers_too(model, tokenizer):
    assert set(score_probe(model, tokenizer, small_rows("domain_text", 4), 64, 4)) == {"loss"}
    assert set(score_probe(model, tokenizer, small_rows("domain_tasks", 4), 64, 4)) == {
        "loss", "accuracy", "f1"}


SETTINGS = {"repetition_penalty": 3.0, "min_new_tokens": 12, "no_repeat_ngram_size": 1, "num_beams": 3,
            "suppress_tokens": list(range(5, 200)), "begin_suppress_tokens": list(range(5, 300)),
            "bad_words_ids": [[number] for number in range(5, 250)], "forced_eos_token_id": 1,
            "forced_bos_token_id": 9, "stop_strings": ["a", "e", "i", " "], "max_length": 3,
            "exponential_decay_length_penalty": (1, 9.0), "sequence_bias": [[[7], 90.0]], "top_k": 3,
            "do_sample": True, "temperature": 9.0, "max_time": 1e-9, "guidance_scale": 5.0,
            "num_return_sequences": 2, "return_dict_in_generate": True, "cache_implementation": "static",
            "output_scores": True, "prompt_lookup_num_tokens": 3, "remove_invalid_values": True,
            "renormalize_logits": True, "token_healing": True}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_models_published_generation_settings_change_no_answer(model, tokenizer, name, monkeypatch):
    questions = [row["messages"][:-1] for row in small_rows("domain_tasks", 3)]
    wanted = generate_answers(model, tokenizer, questions, 8)
    own = GenerationConfig(eos_token_id=1, pad_token_id=0)
    setattr(own, name, SETTINGS[name])
    monkeypatch.setattr(model, "generation_config", own)
    assert generate_answers(model, tokenizer, questions, 8) == wanted
    assert model.generation_config is own, "the model keeps its settings, to be saved with it"


@pytest.mark.parametrize("method", ["lora", "ptuning_v2"])
def test_the_same_holds_under_an_adapter(make_model, tokenizer, settings, method):
    base = load_model(make_model("llama"))
    model = METHOD_FUNCTIONS[method](base, tokenizer, settings(method, prefix_init="random"), "")
    questions = [row["messages"][:-1] for row in small_rows("domain_tasks", 3)]
    wanted = generate_answers(model, tokenizer, questions, 8)
    own = base.generation_config
    own.update(repetition_penalty=3.0, min_new_tokens=8, suppress_tokens=list(range(5, 200)))
    assert generate_answers(model, tokenizer, questions, 8) == wanted
    assert base.generation_config is own and model.generation_config is own


def test_the_end_tokens_of_the_models_settings_end_an_answer(model, tokenizer, monkeypatch):
    question = small_rows("domain_tasks", 1)
    whole, = complete_answers(model, tokenizer, question, 8)
    first = tokenizer(whole.text, add_special_tokens=False)["input_ids"][-1]
    monkeypatch.setattr(model, "generation_config", GenerationConfig(eos_token_id=[1, first]))
    ended, = complete_answers(model, tokenizer, question, 8)
    assert whole.cut and not ended.cut and whole.text.startswith(ended.text)
