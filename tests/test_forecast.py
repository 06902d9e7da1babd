"""The forecast: memory by part against what real tensors hold, time by a trial, and the truth beside both."""

import re
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from sftbench.cli import main
from sftbench.data.packing import collate_batch, rows_to_dataset
from sftbench.data.tokenization import EncodedRow
from sftbench.evaluation.probes import scoring_bytes
from sftbench.models.architecture import build_empty, measure_architecture
from sftbench.models.loading import load_model, release_memory
from sftbench.models.methods import METHOD_FUNCTIONS, trainable_parameters
from sftbench.recipes.recipe import METHODS, Recipe, override
from sftbench.reports.ledger import format_forecast, format_ledger
from sftbench.runs.events import read_events
from sftbench.runs.folder import read_result
from sftbench.training import forecast
from sftbench.training.chain import run_chain
from sftbench.training.forecast import _available_memory, forecast_recipe
from sftbench.training.memory import predict_memory, read_peak_memory, reset_peak_memory
from tests.conftest import FAMILIES, small_rows


def saved_bytes(model, batch: dict) -> int:
    """What a real forward pass keeps for the backward pass, beside the weights: each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor
    kept = []  # so that no address is used twice
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(keep(tensor)) or tensor,
                                                  lambda tensor: tensor):
        labels = batch.pop("labels")[:, 1:].flatten()
        logits = model(**batch, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        torch.nn.functional.cross_entropy(logits, labels)
    return sum(sizes.values())


@pytest.mark.parametrize("method", ["full", "lora", "freeze", "ptuning_v2"])
def test_memory_by_part_is_what_real_tensors_hold(make_model, tokenizer, settings, method):
    options = settings(method, per_device_train_batch_size=4)
    rows = [EncodedRow(list(range(5, 69)), list(range(5, 69)))] * 4
    model = load_model(make_model("llama"))
    config = model.config
    model = METHOD_FUNCTIONS[method](model, tokenizer, options, "Where is item 1? " * 9)
    model.train()
    sizes = [parameter.numel() for parameter in model.parameters()]
    trained = sum(trainable_parameters(model).values())
    parts = predict_memory(config, options, tokenizer, 64, trained=4 * 63)
    assert parts["weights"] == 4 * sum(sizes)
    assert parts["gradients"] == 4 * trained and parts["optimiser"] == 8 * trained
    batch = collate_batch(list(rows_to_dataset(rows)), 0, packed=False)
    real = saved_bytes(model, batch)
    # what is held for a moment comes on top: logits, their gradient, one layer's gradients
    assert 0.95 * real <= parts["activations"] + parts["gradients"] <= 1.7 * real


def test_merging_in_float32_is_counted_where_it_takes_more_than_training(make_model, tokenizer, settings):
    from transformers import LlamaConfig
    config = LlamaConfig(vocab_size=1000, hidden_size=512, intermediate_size=2048, num_hidden_layers=4)
    whole = 4 * sum(weight.numel() for weight in build_empty(config).parameters())
    options = settings("qlora", bf16=True, lora_r=1, per_device_train_batch_size=1)
    parts = predict_memory(config, options, tokenizer, 8)
    assert parts["weights"] < 0.3 * whole and parts["hand_over"] > 0
    assert whole < sum(parts.values()) < 1.15 * whole
    assert parts == predict_memory(config, options, tokenizer, 8)
    assert predict_memory(config, settings("full"), tokenizer, 8)["hand_over"] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_counted(make_model, tokenizer, settings, family):
    config = AutoConfig.from_pretrained(make_model(family))
    whole = measure_architecture(config)["parameters"]
    for method in ("full", "ptuning_v2", "freeze"):
        parts = predict_memory(config, settings(method), tokenizer, 64)
        assert parts["weights"] >= 4 * whole and parts["activations"] > 0
    assert config.to_dict() == AutoConfig.from_pretrained(make_model(family)).to_dict()


def test_what_saves_memory_is_forecast_to_save_it(make_model, tokenizer, settings):
    config = AutoConfig.from_pretrained(make_model())

    def parts(*given, width=128, **changed):
        return predict_memory(config, replace(settings(*given), **changed), tokenizer, width)
    full, lora, qlora = (parts(method) for method in ("full", "lora", "qlora"))
    assert lora["optimiser"] < full["optimiser"] / 3 and qlora["weights"] < 0.75 * lora["weights"]
    assert parts(gradient_checkpointing=True)["activations"] < 0.7 * full["activations"]
    assert 1.8 < parts(per_device_train_batch_size=8)["activations"] / full["activations"] < 2.2
    assert parts(width=64)["activations"] < 0.6 * full["activations"]
    blocks_added = parts("freeze", trainable_parts="new_blocks:1")
    assert blocks_added["weights"] > full["weights"] and blocks_added["optimiser"] < full["optimiser"]


def test_many_logits_are_never_forecast_as_held_at_once(tokenizer, settings):
    from transformers import LlamaConfig
    config = LlamaConfig(vocab_size=200_000, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2)
    parts = predict_memory(config, settings("lora", per_device_train_batch_size=4), tokenizer, 512)
    assert parts["activations"] < 4 * 512 * 200_000 * 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets the mark be set back")
def test_the_peak_counts_from_when_it_was_set_back():
    held = torch.ones(100_000_000)
    reset_peak_memory()
    before = read_peak_memory()
    del held
    release_memory()
    reset_peak_memory()
    after = read_peak_memory()
    assert before - after > 350e6
    held = torch.ones(60_000_000)
    del held
    assert 200e6 < read_peak_memory() - after < 300e6


@pytest.fixture
def recipe(make_model, small_files, tmp_path):
    """A function from changed fields to a recipe whose stages are long enough to be timed."""
    def make(**values):
        defaults = {"mode": "2", "model": make_model(), "max_steps": 24, "probe_rows": 4,
                    "learning_rate": 1e-3, "num_train_epochs": 9, "cpt_num_train_epochs": 9, "packing": False,
                    "output_dir": str(tmp_path / "run")} | small_files
        return override(Recipe(), **defaults | values)
    return make


@pytest.mark.slow
def test_the_truth_stands_beside_the_forecast(recipe):
    mine = recipe()
    before = forecast_recipe(mine)
    assert before["fits"] == "fits" and before["steps"] == {"cpt": 24, "domain_sft": 24}
    folder = run_chain(mine)
    told, result = read_result(folder)["forecast"], read_result(folder)
    start = next(event for event in read_events(folder) if "plan" in event)
    assert start["forecast"]["stages"] == {**told}["stages"] and start["forecast"]["seconds"] > 0
    for stage in result["stages"]:
        mine = told["stages"][stage["name"]]
        assert mine["peak_memory_bytes"] == sum(mine["memory"].values())
        assert mine["peak_memory_bytes"] == pytest.approx(stage["peak_memory_bytes"], rel=0.15)
        assert mine["seconds"] > 0  # how near: `python benchmarks/forecast.py`, on a quiet machine
    assert told["took"]["seconds"] > sum(stage["seconds"] for stage in result["stages"])
    assert told["took"]["peak_memory_bytes"] == max(stage["peak_memory_bytes"] for stage in result["stages"])
    text = format_ledger(folder)
    assert re.search(r"^time +\d.*\n  forecast +\d.*\nmemory +\d.*\n  forecast +\d.*$", text, re.M)
    again = forecast_recipe(recipe())
    assert [stage["seconds"] for stage in again["stages"].values()] == [0, 0]
    assert "in the store already" in format_forecast(again)


def test_short_stages_are_not_tried_and_memory_is_told_all_the_same(recipe, monkeypatch):
    monkeypatch.setattr(forecast, "_try_stage", lambda *_: pytest.fail("a step was tried"))
    for found, why in ((forecast_recipe(recipe(max_steps=5)), "a stage of fewer than 20 steps"),
                       (forecast_recipe(recipe(), timed=False), "it was not requested")):
        assert found["seconds"] is None and found["peak_memory_bytes"] > 1e8
        assert f"Time: not measured, since {why}" in format_forecast(found)


@pytest.mark.parametrize(("room", "word", "remedy"), [
    (10.0, "fits", ""), (1.1, "tight", "too much"), (0.5, "does not fit", "smaller batch"),
])
def test_it_says_whether_memory_suffices(recipe, monkeypatch, room, word, remedy):
    peak = forecast_recipe(recipe(), timed=False)["peak_memory_bytes"]
    _, held = _available_memory()
    monkeypatch.setattr(forecast, "_available_memory", lambda: (int(room * peak), held))
    tried = []
    monkeypatch.setattr(forecast, "_add_seconds", lambda *_: tried.append(1))
    found = forecast_recipe(recipe())
    assert found["fits"] == word and bool(tried) == (word != "does not fit")
    assert f"Memory: {word};" in format_forecast(found) and remedy in format_forecast(found)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_forecast(recipe, method):
    found = forecast_recipe(recipe(method=method), timed=False)
    assert all(set(stage["memory"]) == {"base", "weights", "gradients", "optimiser", "activations",
                                           "hand_over", "probes"}
               for stage in found["stages"].values())


def test_a_model_that_cannot_be_counted_has_no_forecast_of_memory(recipe, monkeypatch):
    def refuse(*_):
        raise NotImplementedError("no such operation on the meta device")
    monkeypatch.setattr(forecast, "predict_memory", refuse)
    found = forecast_recipe(recipe(), timed=False)
    assert found["fits"] is None and found["peak_memory_bytes"] is None
    assert "GB" not in format_forecast(found)


def test_probes_hold_no_more_than_is_counted():
    rows = [EncodedRow([1] * length, [1] * length) for length in (10, 30, 20)]
    assert scoring_bytes(rows, 1000) == 3 * 4 * 1000 * (9 + 29 + 19)
    assert scoring_bytes(rows, 1_000_000) == 3 * 4 * 1_000_000 * 29  # each row by itself


def test_the_command_tells_before_and_run_tells_first(recipe, capsys, small_files, make_model, tmp_path):
    words = ["-p", "model", make_model(), "-p", "max_steps", "2", "-p", "probe_rows", "4"]
    words += [word for name, path in small_files.items() for word in ("-p", name, path)]
    assert main(["forecast", "2", *words, "--quick"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^forecast +cpt +domain_sft\n-+\nsteps +2 +2\nmemory +\d", said)
    assert "Memory: fits" in said and len(small_rows("domain_text")) == 40
    assert main(["run", "1", *words, "--out", str(tmp_path / "told")]) == 0
    said = capsys.readouterr().out
    assert said.index("Memory: fits") < said.index("start (base)")
