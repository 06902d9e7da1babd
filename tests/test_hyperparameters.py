"""Hyperparameters: each `None` gets a value with its reason, what is set stays, what is far off is marked."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftbench.recipes.facts import Facts
from sftbench.recipes.hyperparameters import resolve_recipe
from sftbench.recipes.modes import MODES
from sftbench.recipes.pretraining_rates import guess_rate
from sftbench.recipes.recipe import FIELDS, METHODS, ROLES, Recipe, override
from sftbench.recipes.stages import derived_settings
from sftbench.recipes.warnings import hyperparameter_warnings

ALL_ROWS = dict.fromkeys(ROLES, 1000)
NEVER_ADVISED = {"chat_model", "domain", "early_stopping_patience", "eval_steps", "general_share",
                 "keep_best", "max_steps", "model_revision", "output_dir", "prefix_init_text",
                 "prompt_examples", "report_to", "save_steps",
                 "system_prompts", "task_share", "template_date", *ROLES,
                 *(f"{role}_probe" for role in ROLES)}


def facts(known: dict | None) -> Facts:
    """What is known, as measured; None adds nothing."""
    return Facts().add("measured", **(known or {}))


def resolved(known=None, **values):
    return resolve_recipe(override(Recipe(), **values), facts(known or {}))[0]


@pytest.mark.parametrize("kind", ["", "cpt_"])
def test_more_data_never_want_more_epochs(kind):
    amounts = [1, 30, 1000, 10_000, 100_000, 10**6, 10**9, 10**12]
    epochs = [getattr(resolved({"rows": {"domain_tasks": n}, "tokens": {"domain_text": n}}),
                      f"{kind}num_train_epochs") for n in amounts]
    assert epochs == sorted(epochs, reverse=True) and epochs[0] > epochs[-1]


def test_epochs_at_known_sizes():
    epochs = [resolved({"rows": {"domain_tasks": rows}}).num_train_epochs for rows in (9, 1000, 10**4, 10**5)]
    assert epochs == [10, 6, 4, 2]
    assert resolved().num_train_epochs == 3 and resolved().cpt_num_train_epochs == 1
    assert resolved({"tokens": {"domain_text": 2 * 10**5}}).cpt_num_train_epochs == 5


@pytest.mark.parametrize("rate", [9e-5, 3e-4, 3e-3])
def test_rates_follow_the_pretraining_rate_and_the_method(rate):
    known = {"pretraining_learning_rate": rate}
    full = resolved(known)
    assert math.isclose(full.learning_rate, 0.1 * rate, rel_tol=0.01)
    assert math.isclose(full.cpt_learning_rate, rate / 3, rel_tol=0.01) and full.cpt_learning_rate < rate
    for method in METHODS:
        this = resolved(known, method=method)
        assert this.cpt_learning_rate > this.learning_rate and this.cpt_method == method
    for method in ("lora", "qlora"):
        this = resolved(known, method=method)
        assert 5 <= this.learning_rate / full.learning_rate * 1.01 <= 10
        assert this.cpt_learning_rate <= 5 * rate / 3 * 1.01
    freeze = resolved(known, method="freeze")
    assert full.learning_rate < freeze.learning_rate <= 3 * full.learning_rate
    assert full.cpt_learning_rate < freeze.cpt_learning_rate <= rate
    prefix, lora = resolved(known, method="ptuning_v2"), resolved(known, method="lora")
    assert prefix.learning_rate > 5 * lora.learning_rate


def test_each_kind_of_stage_goes_by_its_own_method():
    known = {"pretraining_learning_rate": 3e-3}
    mixed = resolved(known, method="lora", cpt_method="full")
    assert mixed.cpt_learning_rate == resolved(known).cpt_learning_rate
    assert mixed.learning_rate == resolved(known, method="lora").learning_rate


def test_the_rate_the_user_names_comes_before_the_card():
    named = override(Recipe(), pretraining_learning_rate=1e-2)
    recipe, reasons = resolve_recipe(named, facts({"pretraining_learning_rate": 3e-3}))
    assert recipe.learning_rate == 1e-3 and "pretraining_learning_rate" not in reasons
    assert "assumed" in resolve_recipe(Recipe(), facts({}))[1]["pretraining_learning_rate"].reason


def test_another_batch_moves_the_rate_by_its_square_root_within_bounds():
    rates = [resolved(per_device_train_batch_size=batch, gradient_accumulation_steps=steps).learning_rate
             for batch, steps in ((4, 1), (4, 2), (8, 1), (16, 1), (64, 8), (1, 1))]
    assert [round(rate / rates[0], 2) for rate in rates] == [1.0, 1.41, 1.41, 2.0, 2.0, 0.5]
    _, reasons = resolve_recipe(override(Recipe(), per_device_train_batch_size=8), facts({}))
    assert "8 blocks" in reasons["learning_rate"].reason
    assert "blocks" not in reasons["cpt_learning_rate"].reason


def test_rates_are_capped():
    known = {"pretraining_learning_rate": 3e-3}
    assert resolved({"pretraining_learning_rate": 1.0}, method="ptuning_v2").learning_rate == 0.1
    large = override(Recipe(), method="lora", cpt_per_device_train_batch_size=64)
    recipe, reasons = resolve_recipe(large, facts(known))
    assert recipe.cpt_learning_rate == 3e-3 and "capped" in str(reasons["cpt_learning_rate"])
    assert recipe.learning_rate == pytest.approx(5 * 3e-4)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_reads_twice_as_often(method):
    known = {"tokens": {"domain_text": 1e6}, "rows": {"domain_tasks": 1000}}
    full, _ = resolve_recipe(Recipe(), facts(known))
    adapter, reasons = resolve_recipe(override(Recipe(), method=method), facts(known))
    assert adapter.cpt_num_train_epochs == 2 * full.cpt_num_train_epochs
    assert f"{method} 2 × as many" in str(reasons["cpt_num_train_epochs"])
    assert adapter.num_train_epochs == full.num_train_epochs


def test_warm_up_grows_with_the_rate():
    rates = [1e-6, 1e-5, 1e-4, 1e-3, 1e-1, 1.0]
    for kind, base in (("", 0.005), ("cpt_", 0.01)):
        recipes = [resolved(**{f"{kind}learning_rate": rate}) for rate in rates]
        ratios = [getattr(recipe, f"{kind}warmup_ratio") for recipe in recipes]
        assert ratios == sorted(ratios) and ratios[0] < base < ratios[-1] == 0.1
        assert getattr(resolved(), f"{kind}warmup_ratio") == base
    assert resolved(method="lora").warmup_ratio > resolved().warmup_ratio


@pytest.mark.parametrize("known,length", [
    ({}, 1024), ({"context": 512}, 512), ({"row_tokens": 5}, 128), ({"row_tokens": 128}, 128),
    ({"row_tokens": 129}, 256), ({"row_tokens": 5000, "context": 4096}, 1024),
    ({"row_tokens": 300, "context": 64}, 64), ({"row_tokens": 200.5, "context": 4096}, 256),
])
def test_max_length(known, length):
    assert resolved(known).max_length == length


def test_a_prefix_leaves_less_room_and_forbids_packing_and_checkpointing():
    for methods in ({"method": "ptuning_v2"}, {"cpt_method": "ptuning_v2"}):
        this = resolved({"context": 512, "parameters": 10**10}, num_virtual_tokens=20, **methods)
        assert (this.max_length, this.packing, this.gradient_checkpointing) == (492, False, False)
    assert resolved().packing is True


@pytest.mark.parametrize("device,bf16,parameters,expected", [
    ("cpu", True, 10**6, (False, False, "float32")), ("cpu", False, 10**10, (False, True, "float32")),
    ("cpu", True, 10**7, (True, False, "float32")),
    ("cuda", True, 10**6, (True, False, "bfloat16")), ("cuda", False, 10**10, (False, True, "float16")),
    (None, None, None, (False, False, "float32")),
])
def test_what_the_device_decides(device, bf16, parameters, expected):
    this = resolved({"device": device, "bf16": bf16, "parameters": parameters})
    assert (this.bf16, this.gradient_checkpointing, this.bnb_4bit_compute_dtype) == expected


def test_notes_state_what_follows_from_model_and_method():
    def notes(known=None, **values):
        return derived_settings(resolve_recipe(override(Recipe(), **values), facts(known or {}))[0],
                                     facts(known or {}))
    assert set(notes()) == {"attn_implementation", "weights"} and "float32" in notes()["weights"]
    half = {"device": "cuda", "bf16": True, "parameters": 1000, "experts": 900}
    assert notes(half, method="lora")["weights"].startswith("bfloat16")
    assert notes(half)["weights"].startswith("float32") and "experts" not in notes(half)
    assert notes(half, method="lora")["experts"].startswith("adapted too because 90%")
    assert "experts" not in notes(half, method="lora", lora_target_modules="q_proj")
    assert notes(half, method="qlora")["experts"].startswith("not quantised")
    assert "4 bit, computed with in bfloat16" in notes(half, method="qlora")["weights"]
    assert all(" because " in str(text) for text in notes(half, method="qlora").values())
    assert resolve_recipe(override(Recipe(), method="lora"), facts(half))[0].lora_dropout == 0
    assert resolve_recipe(override(Recipe(), method="lora"), facts({}))[0].lora_dropout == 0.05
    assert resolved({"parameters": 10**6}, method="lora").lora_dropout == 0.05
    assert resolved({"parameters": 10**8}, method="lora").lora_dropout == 0


def test_new_tokens_follow_the_answers():
    assert [resolved({"answer_tokens": n}).max_new_tokens for n in (None, 6, 1000)] == [64, 10, 256]


SCALARS = {
    "wants": st.sampled_from(["domain", "both"]), "resources": st.sampled_from(["much", "little"]),
    "related": st.booleans(), "differs": st.booleans(), "task_types": st.integers(0, 20),
    "system_prompts": st.booleans(), "pretraining_learning_rate": st.floats(1e-8, 10),
    "device": st.sampled_from(["cpu", "cuda"]), "bf16": st.booleans(), "context": st.integers(8, 10**6),
    "row_tokens": st.integers(0, 10**5), "answer_tokens": st.integers(0, 10**4),
    "parameters": st.integers(1, 10**12),
    "rows": st.dictionaries(st.sampled_from(ROLES), st.integers(0, 10**9)),
    "tokens": st.dictionaries(st.sampled_from(ROLES), st.integers(0, 10**13)),
    "base_loss": st.dictionaries(st.sampled_from(ROLES), st.floats(0, 20) | st.just(math.nan)),
    "base_accuracy": st.dictionaries(st.sampled_from(ROLES), st.floats(0, 1)),
}
KNOWN = st.fixed_dictionaries({}, optional={name: values | st.none() for name, values in SCALARS.items()})
SET = st.fixed_dictionaries({}, optional={
    "mode": st.sampled_from(sorted(MODES)), "method": st.sampled_from(METHODS),
    "cpt_method": st.sampled_from(METHODS), "pretraining_learning_rate": st.floats(1e-8, 10),
    "learning_rate": st.floats(1e-9, 10), "cpt_learning_rate": st.floats(1e-9, 10),
    "warmup_ratio": st.floats(0, 0.9), "cpt_warmup_ratio": st.floats(0, 0.9),
    "num_train_epochs": st.floats(0.1, 50), "cpt_num_train_epochs": st.floats(0.1, 50),
    "per_device_train_batch_size": st.integers(1, 512),
    "cpt_per_device_train_batch_size": st.integers(1, 512),
    "gradient_accumulation_steps": st.integers(1, 64), "max_length": st.integers(8, 4096),
    "packing": st.booleans(),
    "lora_dropout": st.floats(0, 0.9), "bf16": st.booleans(),
    "gradient_checkpointing": st.booleans(), "max_new_tokens": st.integers(1, 512),
    "bnb_4bit_compute_dtype": st.sampled_from(["float32", "bfloat16"]),
    "general_share": st.sampled_from([0.0, 0.5]),
    "num_virtual_tokens": st.integers(1, 100),
})


@given(SET, KNOWN)
def test_resolving_fills_all_that_is_advised_and_touches_nothing_that_is_set(values, known):
    recipe = override(Recipe(), **values)
    full, reasons = resolve_recipe(recipe, facts(known))
    override(Recipe(), **dataclasses.asdict(full))  # every advised value passes the recipe's own checks
    for name in FIELDS:
        before, after = getattr(recipe, name), getattr(full, name)
        assert (after is None) == (name in NEVER_ADVISED and before is None), name
        assert before is None or before == after
        assert (name in reasons) == (before is None and after is not None)
    assert all(" because " in str(text) for text in reasons.values())
    assert resolve_recipe(full, facts(known)) == (full, {})


@pytest.mark.parametrize("values,known,words", [
    ({"learning_rate": 3e-3}, {"pretraining_learning_rate": 3e-3}, "0.003 is 10 times above the 0.0003"),
    ({"learning_rate": 3e-4, "method": "lora"}, {"pretraining_learning_rate": 3e-3}, "5 times below"),
    ({"cpt_learning_rate": 1.0}, {}, "cpt_learning_rate 1 is"),
    ({"warmup_ratio": 0.2}, {}, "warmup_ratio 0.2 is beyond 0.1"),
    ({"num_train_epochs": 1.0}, {"rows": ALL_ROWS}, "num_train_epochs 1 is less than half of the 6"),
    ({"max_length": 64}, {"row_tokens": 100}, "drops longer tasks"),
    ({"max_length": 1024}, {"context": 512}, "exceeds the model's 512"),
    ({"max_new_tokens": 4}, {"answer_tokens": 9}, "cuts probe answers"),
    ({"method": "ptuning_v2", "packing": True}, {}, "packing does not go"),
    ({"method": "ptuning_v2", "gradient_checkpointing": True}, {}, "gradient_checkpointing does not go"),
    ({"bf16": True}, {"device": "cpu"}, "bf16 is on"),
])
def test_values_far_from_the_advice_are_warned_of(values, known, words):
    recipe = override(Recipe(), **values)
    assert [text for text in hyperparameter_warnings(recipe, facts(known)) if words in text]


@pytest.mark.parametrize("values", [{"mode": "6"}, {"mode": "nowhere"}, {"general_share": 0.0}])
def test_warnings_of_values_leave_the_mode_aside(values):
    known = {"wants": "both", "rows": {"domain_tasks": 10**5}}
    assert hyperparameter_warnings(override(Recipe(), **values), facts(known)) == []


def test_full_takes_no_more_of_a_published_rate_than_the_width_bears():
    """SmolLM2's peak is far above its width's rate, Llama 2's is near it; a card's own rate is not capped."""
    def advised(rate: float, width: int, origin: str, **values) -> Recipe:
        known = Facts().add(origin, hidden_size=width, model_type="llama", pretraining_learning_rate=rate)
        known = known.add(origin, pretrained_as="SmolLM2") if origin == "published" else known
        return resolve_recipe(override(Recipe(), mode="2", **values), known)[0]

    small, stated = advised(3e-3, 576, "published"), advised(3e-3, 576, "card")
    guess = guess_rate(576, "llama")
    assert small.learning_rate == pytest.approx(0.1 * guess, rel=0.01) and stated.learning_rate == 3e-4
    assert small.cpt_learning_rate == pytest.approx(guess / 3, rel=0.01) and stated.cpt_learning_rate == 1e-3
    assert advised(2.5e-4, 4096, "published").learning_rate == 2.5e-5
    assert advised(3e-3, 576, "published", method="lora").learning_rate == 1.5e-3
    assert small.warmup_ratio == pytest.approx(stated.warmup_ratio, rel=0.01)
