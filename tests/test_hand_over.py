"""A stage counts only if what it wrote, loaded again, scores as the trained model did in memory."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from sftbench.models.methods import save_stage_model
from sftbench.recipes.recipe import METHODS, Recipe, override
from sftbench.runs.folder import read_json, read_result
from sftbench.training import chain
from sftbench.training.chain import run_chain
from sftbench.training.prepare import prepare_recipe
from tests.conftest import run_failed


@pytest.fixture
def recipe(make_model, tmp_path, small_files):
    """A function from changed fields to a small recipe of one stage."""
    def make(**values) -> Recipe:
        return override(Recipe(), **{
            "mode": "1", "model": make_model(), "max_steps": 2, "probe_rows": 4, "yardstick": False,
            "pretraining_learning_rate": 1e-2, "output_dir": str(tmp_path / "run")} | small_files | values)
    return make


@pytest.mark.parametrize(("method", "values"), [
    *((method, {}) for method in METHODS), ("freeze", {"trainable_parts": "new_blocks:1, new_head"}),
    ("lora", {"use_dora": True}),
])
def test_each_stage_reports_how_far_the_stored_model_is_from_the_trained_one(recipe, method, values):
    stage, = read_result(run_chain(recipe(method=method, **values)))["stages"]
    assert stage["hand_over_difference"].keys() == stage["start_loss"].keys() != set()
    assert max(map(abs, stage["hand_over_difference"].values())) < 1e-4


def spoil(change):
    """save_stage_model, after which `change` is applied to the file of weights."""
    def save(model, method, folder):
        saved = save_stage_model(model, method, folder)
        path = next(folder.glob("*/*.safetensors"))
        weights = load_file(path)
        change(weights)
        save_file(weights, path, metadata={"format": "pt"})
        return saved
    return save


def round_all(weights):
    for name, weight in weights.items():
        weights[name] = weight + 0.02 * torch.randn_like(weight)


def lose_one(weights):
    del weights[next(name for name in weights if "mlp" in name or "prompt" in name)]


def make_nan(weights):
    next(iter(weights.values())).flatten()[0] = float("nan")


@pytest.mark.parametrize(("change", "named"), [
    (round_all, "nats per token"), (lose_one, "cannot be loaded"), (make_nan, "cannot be loaded")])
def test_a_stage_whose_files_differ_from_what_was_trained_has_failed(recipe, monkeypatch, change, named):
    monkeypatch.setattr(chain, "save_stage_model", spoil(change))
    mine = recipe(method="lora")
    with run_failed("hand-over", match=f"stage domain_sft .*{named}"):
        run_chain(mine)
    folder = mine.output_dir
    result = read_json(folder, "result.json")
    assert (result["state"], result["reason"], result["stages"]) == ("failed", "hand-over", [])
    monkeypatch.undo()
    assert not read_result(run_chain(mine))["stages"][0]["reused"], "the failed stage was put into the store"


def test_a_prefix_that_differs_has_failed(recipe, monkeypatch):
    monkeypatch.setattr(chain, "save_stage_model", spoil(
        lambda weights: weights.update({name: weight * 3 for name, weight in weights.items()})))
    with run_failed("hand-over"):
        run_chain(recipe(method="ptuning_v2", learning_rate=0.1))


def test_a_configuration_that_builds_another_model_has_failed(recipe, monkeypatch):
    def save(model, method, folder):
        saved = save_stage_model(model, method, folder)
        path = folder / "model" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))
        return saved
    monkeypatch.setattr(chain, "save_stage_model", save)
    with run_failed("hand-over"):
        run_chain(recipe(max_steps=8))


def test_a_tokenizer_that_reads_otherwise_has_failed(recipe, monkeypatch):
    real = PreTrainedTokenizerFast.save_pretrained

    def spoiled(self, folder, **more):
        template, self.chat_template = self.chat_template, self.chat_template.replace("<", "<!")
        real(self, folder, **more)
        self.chat_template = template
    ready = prepare_recipe(recipe())
    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", spoiled)
    with run_failed("hand-over", match="tokenizer"):
        run_chain(ready)
