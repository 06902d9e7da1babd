"""Tokens of a chat template that pre-training never saw: with a frozen embedding they are hard to learn."""

import shutil

import pytest
from transformers import AutoModelForCausalLM

from sftbench.recipes.recipe import Recipe, override
from sftbench.training.prepare import prepare_recipe


def spoil(folder, tmp_path, change):
    """A copy of a model with its embedding changed."""
    copy = shutil.copytree(folder, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(copy)
    change(model.get_input_embeddings().weight.data)
    model.save_pretrained(copy)
    return str(copy)


def warnings_of(model, files, **values):
    recipe = override(Recipe(), mode="1", model=model, domain_tasks=files["domain_tasks"], **values)
    ready = prepare_recipe(recipe)
    return [text for text in ready.warnings if "learn to stop" in text]


@pytest.mark.parametrize(("token", "change"), [
    ("<eos>", lambda rows: rows[1].zero_()), ("<assistant>", lambda rows: rows[3].copy_(rows[7])),
    ("<eos>, <user>, <assistant>", lambda rows: rows[1:4].fill_(0.01))])
def test_untrained_tokens_are_named_where_the_embedding_stays(make_model, small_files, tmp_path, token,
                                                              change):
    model = spoil(make_model(), tmp_path, change)
    assert len(found := warnings_of(model, small_files, method="lora")) == 1 and f" {token}, so" in found[0]
    assert warnings_of(model, small_files, method="full") == []
    assert len(warnings_of(model, small_files, method="freeze")) == 1
    assert warnings_of(model, small_files, method="freeze", trainable_parts="last:1,head") == []


def test_a_model_whose_tokens_differ_is_not_warned_of(make_model, small_files):
    assert warnings_of(make_model(), small_files, method="lora") == []
    assert warnings_of("pocket", small_files, method="lora") == []
