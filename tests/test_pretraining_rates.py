"""Pre-training rates: known by a model's shape from a table with sources, else guessed, and said so."""

import json
import shutil

import pytest
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen3Config

from sftbench.recipes.facts import Facts
from sftbench.recipes.hyperparameters import resolve_recipe
from sftbench.recipes.pretraining_rates import (
    PUBLISHED,
    add_pretraining,
    guess_rate,
    model_shape,
    published_rate,
)
from sftbench.recipes.recipe import Recipe, override
from sftbench.training.prepare import prepare_recipe
from sftbench.workbench.form import start_model_facts

SMOLLM2 = LlamaConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, vocab_size=49152)


def advised(config: dict, **values):
    """The rate that is advised for a model of this configuration, with its reason."""
    return resolve_recipe(override(Recipe(), **values), add_pretraining(Facts(), config))[1][
        "pretraining_learning_rate"]


@pytest.mark.parametrize("config,name", [
    (SMOLLM2, "SmolLM2-135M"),
    (LlamaConfig(hidden_size=4096, num_hidden_layers=32, vocab_size=32016), "Llama 1 and 2, 7B"),
    (LlamaConfig(hidden_size=4096, num_hidden_layers=32, vocab_size=128256), "Llama 3, 8B"),
    (GPTNeoXConfig(hidden_size=4096, num_hidden_layers=32, vocab_size=50432), "Pythia-6.9B"),
    (GPT2Config(), "GPT-3 Small"),
    (Qwen3Config(hidden_size=576, num_hidden_layers=30, vocab_size=49152), None),  # another family
    (LlamaConfig(hidden_size=4096, num_hidden_layers=31, vocab_size=32000), None),
    (LlamaConfig(hidden_size=4096, num_hidden_layers=32, vocab_size=40000), None),
])
def test_a_model_is_known_by_its_shape(config, name):
    entry = published_rate(model_shape(config.to_dict()))
    assert (entry and entry["name"]) == name
    facts = add_pretraining(Facts(), config.to_dict())
    assert facts.pretraining_learning_rate == (entry and entry["learning_rate"])
    assert facts.origins.get("pretraining_learning_rate") == (entry and "published")


def test_each_entry_is_found_by_its_own_shape_and_names_its_source():
    for entry in PUBLISHED:
        for family in entry["model_type"]:
            assert published_rate(entry | {"model_type": family}) is entry
        assert entry["source"].startswith(("github.com/", "huggingface.co/", "arXiv:"))
        assert 1e-5 < entry["learning_rate"] < 1e-2


def test_the_reason_names_the_source_or_says_that_it_is_guessed():
    known = advised(SMOLLM2.to_dict())
    assert known.value == 3e-3 and "SmolLM2-135M (github.com/huggingface/smollm" in known.reason
    other = advised(LlamaConfig(hidden_size=640, num_hidden_layers=30).to_dict())
    assert "guessed from the width of 640" in other.reason and other.value == guess_rate(640, "llama")
    assert "assumed" in advised({}).reason


def test_a_card_comes_before_the_table():
    config = SMOLLM2.to_dict() | {"sftbench": {"pretraining_learning_rate": 7e-4}}
    assert advised(config).value == 7e-4 and "card" in advised(config).reason


def test_the_guess_falls_with_the_width_and_comes_close_to_what_was_published():
    rates = [guess_rate(width, "llama") for width in (64, 576, 1024, 2048, 4096, 8192)]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 6
    assert rates[0] == max(entry["learning_rate"] for entry in PUBLISHED)
    assert guess_rate(2000, "llama") == guess_rate(2000, "qwen3") == 5e-4
    assert guess_rate(8192, "qwen2") > guess_rate(8192, None)
    for entry in PUBLISHED:
        ratio = guess_rate(entry["hidden_size"], entry["model_type"][0]) / entry["learning_rate"]
        close = "lama" in entry["name"] or "OLMo" in entry["name"]
        assert 0.75 < ratio < 1.35 if close else 0.25 < ratio < 3.1, entry["name"]


@pytest.mark.parametrize("config", [
    {}, {"model_type": ["llama"]}, {"hidden_size": "576", "num_hidden_layers": -1}, {"text_config": 3}])
def test_a_strange_config_is_no_shape(config):
    assert published_rate(model_shape(config)) is None
    assert add_pretraining(Facts(), config).pretraining_learning_rate is None


def test_form_and_run_know_the_same_of_a_folder(make_model, tmp_path, small_files):
    folder = tmp_path / "model"
    shutil.copytree(make_model(), folder)
    recipe = override(Recipe(), mode="1", model=str(folder), **small_files)
    facts = start_model_facts(recipe)
    ready = prepare_recipe(recipe)
    assert facts.hidden_size == json.loads((folder / "config.json").read_text())["hidden_size"]
    assert (facts.hidden_size, facts.model_type) == (ready.facts.hidden_size, ready.facts.model_type)
    assert "guessed" in ready.reasons["pretraining_learning_rate"]
