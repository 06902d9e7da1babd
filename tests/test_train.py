"""The one loop: accumulation, repeatability, what it tells, and that it stops on a loss that is no number."""

import math

import pytest
import torch
from transformers import set_seed

from sftbench.data.packing import rows_to_dataset
from sftbench.data.tokenization import encode_probe
from sftbench.evaluation.probes import mean_loss
from sftbench.models import packing
from sftbench.models.loading import load_model, make_bnb_config
from sftbench.models.methods import METHOD_FUNCTIONS, trainable_parameters
from sftbench.training import trainer
from sftbench.training.hand_over import sum_weights
from sftbench.training.trainer import StageContext, count_warmup_steps, train_stage
from tests.conftest import FAMILIES, run_failed, small_rows


def run(folder, tokenizer, settings, rows=None, probes=None, prepare=None, **more):
    """Train the small model; returns it, its figures and its events."""
    set_seed(settings.seed)
    quantised = make_bnb_config(settings) if settings.method == "qlora" else None
    model = METHOD_FUNCTIONS[settings.method](
        load_model(folder, quantization=quantised), tokenizer, settings, "Where is item 1?")
    if prepare:
        prepare(model)
    rows = rows or small_rows("domain_tasks", 120)
    encoded, _ = encode_probe(tokenizer, rows, settings.max_length)
    dataset, events = rows_to_dataset(encoded, settings.max_length if settings.packing else None), []
    figures = train_stage(
        model, StageContext("sft", settings, tokenizer, dataset, events.append, probes or {}, **more))
    return model, figures, events


@pytest.mark.parametrize("packing", [True, False])
def test_batch_8_is_8_times_batch_1_accumulated(make_model, tokenizer, settings, packing):
    mixed = small_rows("domain_tasks", 40) + small_rows("domain_text", 40)  # of very different trained length
    results = []
    for batch, accumulate in ((8, 1), (1, 8)):
        options = settings(packing=packing, per_device_train_batch_size=batch,
                           gradient_accumulation_steps=accumulate, max_steps=3, learning_rate=1e-3)
        results.append(run(make_model(), tokenizer, options, mixed))
    (one, figures, events), (other, _, accumulated) = results
    assert figures.steps == 3
    for first, second in zip(events[1:], accumulated[1:], strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-5)
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)
    for (name, left), right in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(left, right, atol=2e-4), name


@pytest.mark.parametrize("method", ["full", "ptuning_v2"])
def test_the_loss_from_whole_logits_is_trls_own(make_model, tokenizer, settings, monkeypatch, method):
    options = settings(method, gradient_accumulation_steps=2, max_steps=3, learning_rate=1e-3)
    mixed = small_rows("domain_tasks", 40) + small_rows("domain_text", 40)
    whole = run(make_model(), tokenizer, options, mixed)[2]
    monkeypatch.setattr(trainer, "max_logits", lambda: 0)
    pieces = run(make_model(), tokenizer, options, mixed)[2]
    for name in ("loss", "grad_norm"):
        assert [event[name] for event in whole[1:]] == pytest.approx(
            [event[name] for event in pieces[1:]], rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_spread_otherwise_train_the_same(make_model, tokenizer, settings, monkeypatch, family):
    def without_dropout(model):  # which draws by place
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

    options = settings(per_device_train_batch_size=4, max_steps=3, learning_rate=1e-3)
    mixed = small_rows("domain_tasks", 40) + small_rows("domain_text", 40)
    spread = run(make_model(family), tokenizer, options, mixed, prepare=without_dropout)[2]
    monkeypatch.setattr(packing, "spread_rows", lambda blocks, cost, context: blocks)
    monkeypatch.setattr(trainer, "select_logits", lambda model, positions, **inputs: model(
        **inputs, use_cache=False).logits[positions])
    blocks = run(make_model(family), tokenizer, options, mixed, prepare=without_dropout)[2]
    for name in ("loss", "grad_norm"):
        assert [event[name] for event in spread[1:]] == pytest.approx([event[name] for event in blocks[1:]],
                                                                      rel=1e-5, abs=1e-5)


def test_packed_training_takes_the_same_loss_as_unpacked(make_model, tokenizer, settings):
    rows = small_rows("domain_tasks", 12)
    whole = [run(make_model(), tokenizer, settings(packing=packing, per_device_train_batch_size=12), rows)[2]
             for packing in (True, False)]
    assert whole[0][1]["loss"] == pytest.approx(whole[1][1]["loss"], abs=1e-5)


def test_equal_seeds_give_equal_losses_and_weights(make_model, tokenizer, settings):
    def seeded(seed):
        model, _, events = run(make_model(), tokenizer,
                               settings("lora", lora_dropout=0.1, seed=seed, max_steps=4))
        return [event["loss"] for event in events[1:]], trainable_parameters(model) and next(
            value for name, value in model.named_parameters() if "lora_B" in name)
    first, again, other = seeded(1), seeded(1), seeded(2)
    assert first[0] == again[0] and torch.equal(first[1], again[1])
    assert first[0] != other[0]


def test_events_tell_every_step_and_score_the_probes(make_model, tokenizer, settings):
    rows, _ = encode_probe(tokenizer, small_rows("domain_tasks", 8), 64)
    model, figures, events = run(make_model(), tokenizer, settings(max_steps=4),
                                 probes={"domain_tasks": rows}, eval_steps=2)
    assert [event["step"] for event in events if "loss" in event] == [1, 2, 3, 4]
    scored = [event for event in events if "eval_domain_tasks_loss" in event]
    assert [event["step"] for event in scored] == [0, 2]
    assert scored[0]["eval_domain_tasks_loss"] == figures.start_loss["domain_tasks"]
    start = mean_loss(load_model(make_model()), rows, 0)
    assert figures.start_loss["domain_tasks"] == pytest.approx(start, abs=1e-6)
    tokens = [event["tokens"] for event in events if "loss" in event]
    assert tokens == sorted(tokens) and tokens[-1] == figures.tokens and figures.peak_memory_bytes > 1e8
    assert all(math.isfinite(event["learning_rate"]) for event in events if "loss" in event)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_probe_in_mid_run_leaves_training_as_it_was(make_model, tokenizer, settings, method):
    rows, _ = encode_probe(tokenizer, small_rows("domain_text", 8), 64)
    options = settings(method, lora_dropout=0.2, max_steps=5)
    losses = [[event["loss"] for event in run(make_model(), tokenizer, options,
                                              probes=probes, eval_steps=1)[2] if "loss" in event]
              for probes in ({}, {"domain_text": rows})]
    assert losses[0] == losses[1]


def test_max_steps_never_adds_a_second_pass(make_model, tokenizer, settings):
    _, figures, _ = run(make_model(), tokenizer, settings(max_steps=10_000), small_rows("domain_tasks", 16))
    assert figures.steps < 10


def test_a_loss_that_is_no_number_stops_the_stage(make_model, tokenizer, settings):
    def poison(model):
        with torch.no_grad():
            model.model.norm.weight.fill_(float("nan"))
    with run_failed("non-finite", match="step 1 of stage sft"):
        run(make_model(), tokenizer, settings(max_steps=4), prepare=poison)


def test_warm_up_and_schedule_are_as_asked(make_model, tokenizer, settings):
    options = settings(max_steps=10, warmup_ratio=0.2, learning_rate=1e-3, lr_scheduler_type="linear")
    _, _, events = run(make_model(), tokenizer, options, small_rows("domain_tasks", 200))
    rates = [event["learning_rate"] for event in events if "loss" in event]
    assert rates[:4] == pytest.approx([0, 5e-4, 1e-3, 8.75e-4], rel=1e-3)


@pytest.mark.parametrize(("steps", "ratio", "warmup"), [
    (1, 0.1, 0), (1, 0.99, 0), (3, 0.3, 0), (20, 0.05, 0), (1000, 0.0, 0), (21, 0.05, 2), (1000, 0.005, 5),
])
def test_a_warm_up_that_is_one_step_is_none(settings, steps, ratio, warmup):
    assert count_warmup_steps(settings(warmup_ratio=ratio), steps) == warmup
    assert trainer.make_sft_config(settings(warmup_ratio=ratio), "", steps).get_warmup_steps(steps) == warmup


@pytest.mark.parametrize("method", ["full", "lora", "freeze"])
@pytest.mark.parametrize("course", ["cosine", "linear", "constant_with_warmup"])
def test_a_stage_of_one_step_learns(make_model, tokenizer, settings, method, course):
    options = settings(method, max_steps=1, warmup_ratio=0.1, lr_scheduler_type=course)
    rows, _ = encode_probe(tokenizer, small_rows("domain_tasks", 8), 64)
    model, figures, events = run(make_model(), tokenizer, options, probes={"domain_tasks": rows})
    assert events[1]["learning_rate"] == options.learning_rate
    assert mean_loss(model, rows, 0) < figures.start_loss["domain_tasks"]


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "ptuning_v2", "freeze"])
def test_a_stage_that_changes_nothing_has_failed(make_model, tokenizer, settings, method, monkeypatch):
    monkeypatch.setattr(trainer, "count_warmup_steps", lambda settings, steps: steps)  # a rate of 0
    with run_failed("unchanged", match="stage sft .* learning rate"):
        run(make_model(), tokenizer, settings(method, max_steps=1))


def test_a_frozen_weight_that_changes_is_a_failure(make_model, tokenizer, settings):
    def leak(model):
        norm = model.base_model.model.model.norm

        def scale(*_):
            norm.weight.data.mul_(1.001)
        norm.register_forward_hook(scale)
    with run_failed("frozen", match="norm.weight"):
        run(make_model(), tokenizer, settings("lora", max_steps=2), prepare=leak)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float64])
def test_the_sum_of_a_weight_changes_with_any_of_its_bits(dtype):
    weight = (torch.arange(1000) % 250).to(dtype).view(20, 50)
    start = sum_weights({"one": weight})["one"]
    assert start[0] == dtype and sum_weights({"one": weight.clone().T.T})["one"] == start
    view = weight.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.itemsize])
    for bit in (0, 3, 6):
        view[7, 9] ^= 1 << bit
        assert sum_weights({"one": weight})["one"] != start
        view[7, 9] ^= 1 << bit
    assert sum_weights({"one": weight})["one"] == start
