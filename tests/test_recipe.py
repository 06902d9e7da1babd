"""The recipe: one door, and what it refuses."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftbench.errors import BadInput
from sftbench.recipes.recipe import (
    FIELDS,
    METHODS,
    Recipe,
    differing_fields,
    field_help,
    field_type,
    from_parameters,
    override,
    parse_value,
    recipe_from_dict,
    recipe_to_dict,
)
from sftbench.recipes.stages import stage_settings
from tests.conftest import bad_input


@pytest.mark.parametrize(("field", "value", "remedy"), [
    ("metod", "lora", "'method'"),
    ("method", "Lora", "'lora'"),
    ("learning_rate", "1e-4", r"1\.0e-4"),
    ("learning_rate", float("nan"), "nan"),
    ("learning_rate", -1e-4, "0"),
    ("learning_rate", True, "must be a number, not True"),
    ("lora_r", True, "must be a whole number, not True"),
    ("lora_r", 8.0, "must be a whole number, not 8.0; write 8"),
    ("lora_r", "8", "must be a whole number, not the text '8'"),
    ("lora_r", 0, "1"),
    ("packing", 1, "must be true or false, not 1"),
    ("seed", None, "None"),
    ("general_share", 1.5, "1"),
    ("domain_text", "", None),
    ("output_dir", "a\nb", None),
    ("method", ("lora",), "must be text"),
    ("learning_rate", numpy.array([1e-4, 1e-3]), "must be a number, not array"),
])
def test_bad_values_are_refused_with_the_remedy(field, value, remedy):
    with bad_input(field, match=remedy):
        override(Recipe(), **{field: value})


def test_numpy_scalars_are_converted_and_ints_serve_as_floats():
    recipe = override(Recipe(), learning_rate=numpy.float32(0.5), lora_r=numpy.int64(4), num_train_epochs=2)
    assert (recipe.learning_rate, recipe.lora_r, recipe.num_train_epochs) == (0.5, 4, 2.0)
    assert type(recipe.lora_r) is int and type(recipe.num_train_epochs) is float


def test_mode_may_be_a_number_since_papermill_reads_one():
    assert override(Recipe(), mode=4).mode == "4"


def test_a_recipe_survives_its_dict():
    recipe = override(Recipe(), method="qlora", learning_rate=3e-4, packing=False)
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe
    assert differing_fields(recipe_to_dict(Recipe()), recipe_to_dict(recipe)) == [
        "method",
        "learning_rate",
        "packing",
    ]


def test_every_field_has_help_and_a_scalar_type():
    for name in FIELDS:
        assert field_help(name) and field_type(name) in (str, int, float, bool)


@given(st.sampled_from(sorted(FIELDS)), st.one_of(
    st.floats(1e-6, 0.5), st.integers(1, 100), st.booleans(), st.sampled_from(METHODS), st.none()))
def test_command_line_text_and_notebook_value_make_the_same_recipe(name, value):
    try:
        by_value = from_parameters({name: value, "In": [], "_": 3})
    except BadInput:
        return
    text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    assert override(Recipe(), **{name: parse_value(name, text)}) == by_value


@pytest.mark.parametrize(("name", "text"), [("lora_r", "8.5"), ("learning_rate", "fast"), ("packing", "1"),
                                            ("lerning_rate", "1")])
def test_command_line_text_of_a_wrong_type_is_refused(name, text):
    with bad_input(name):
        parse_value(name, text)


def test_a_typing_error_in_a_notebook_is_refused():
    with bad_input("learning_rat", match="'learning_rate'"):
        from_parameters({"mode": "2", "learning_rat": 1e-4})
    assert from_parameters({"mode": "2", "x": 3, "model_text": object()}).mode == "2"


def test_stage_settings_hold_only_their_methods_options():
    recipe = override(Recipe(), method="freeze", cpt_method="lora",
                      learning_rate=1e-4, cpt_learning_rate=2e-4)
    sft, cpt = stage_settings(recipe, "sft"), stage_settings(recipe, "cpt")
    assert (sft.method, sft.learning_rate, sft.lora_r, sft.trainable_parts) == (
        "freeze", 1e-4, None, "last:2")
    assert (cpt.method, cpt.learning_rate, cpt.lora_r, cpt.trainable_parts) == ("lora", 2e-4, 16, None)
    assert "lora_r" not in sft.for_key() and "trainable_parts" not in cpt.for_key()


def test_a_prefix_is_never_packed_nor_checkpointed():
    recipe = override(Recipe(), method="ptuning_v2", packing=True, gradient_checkpointing=True)
    settings = stage_settings(recipe, "sft")
    assert settings.packing is False and settings.gradient_checkpointing is False
