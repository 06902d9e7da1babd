"""The advice: each rule speaks in its case, the rules add up to a mode, and what the user set stays."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftbench import advice, modes
from sftbench.errors import BadInput
from sftbench.recipe import FIELDS, METHODS, ROLES, Recipe, override

ALL_ROWS = dict.fromkeys(ROLES, 1000)
NEW_TEXT = {"domain_text": 3.0, "general_text": 2.0}
KNOWN_TEXT = {"domain_text": 2.1, "general_text": 2.0}
EVERYTHING = {
    "rows": ALL_ROWS, "tokens": {"domain_text": 2 * 10**9}, "base_loss": {**NEW_TEXT, "domain_tasks": 2.5},
    "wants": "both", "resources": "much", "related": True, "task_types": 3, "system_prompts": False,
    "pretraining_learning_rate": 3e-3, "device": "cpu", "bf16": False, "context": 512, "row_tokens": 60,
    "answer_tokens": 6, "vocabulary": 2048, "parameters": 900_000,
    "base_accuracy": {"domain_tasks": 0.1, "general_tasks": 0.6},
}
NEVER_ADVISED = {"chat_model", "model_revision", "max_steps", "eval_steps", "general_share", "task_share",
                 "prefix_init_text", "output_dir", *ROLES, *(f"{role}_probe" for role in ROLES)}


def resolved(known=None, **values):
    return advice.resolve(override(Recipe(), **values), known or {})[0]


SPEAKS = {
    "R1": [{"base_loss": NEW_TEXT}, {"base_loss": KNOWN_TEXT}, {"differs": True}, {"differs": False}],
    "R2": [{"tokens": {"domain_text": 10**9}, "wants": "domain"}],
    "R3": [{"wants": "domain"}],
    "R4": [{"wants": "both"}, {"wants": "domain"}],
    "R5": [{"related": True, "wants": "domain"}, {"related": True, "wants": "domain", "rows": ALL_ROWS}],
    "R6": [{"wants": "both"}],
    "R7": [{"resources": "little"}, {"resources": "much", "wants": "both"},
           {"resources": "much", "wants": "domain"}],
    "R8": [{"pretraining_learning_rate": 9e-5}],
    "R9": [{"pretraining_learning_rate": 9e-5}],
    "R10": [{"rows": {"domain_tasks": 10}}],
    "R11": [{"task_types": 2, "system_prompts": False}, {"task_types": 5}],
    "R12": [{"base_accuracy": {"general_tasks": 0.5}}],
    "R13": [{"base_loss": {"domain_tasks": 2.5}}],
    "R14": [{"rows": {"domain_text": 5, "domain_tasks": 5}}],
    "R15": [{"wants": "both"}, {"resources": "little"}],
    "R16": [{"wants": "both"}],
}
SILENT = {
    "R1": [{"base_loss": {"domain_text": 3.0}}, {"base_loss": {"domain_text": None, "general_text": 2.0}}],
    "R2": [{"tokens": {"domain_text": 10**9}, "wants": "both"},
           {"tokens": {"domain_text": 10**8}, "wants": "domain"}],
    "R3": [{"wants": "both"}],
    "R4": [{"resources": "much"}],
    "R5": [{"related": False, "wants": "domain"}, {"related": True, "wants": "both"},
           {"related": True, "wants": "domain", "rows": {"domain_tasks": 9, "general_tasks": 0}},
           {"related": True, "wants": "domain", "rows": {"domain_tasks": 9}}],
    "R6": [{"wants": "domain"}],
    "R7": [{"resources": "much"}, {"wants": "both"}],
    "R8": [{"wants": "both"}],
    "R9": [{"wants": "both"}],
    "R10": [{"rows": {"domain_text": 10}}],
    "R11": [{"task_types": 1}, {"task_types": 3, "system_prompts": True}],
    "R12": [{"base_accuracy": {}}],
    "R13": [{"base_loss": NEW_TEXT}],
    "R14": [{"rows": {"domain_tasks": 5}}],
    "R15": [{"wants": "domain", "resources": "much"}],
    "R16": [{"wants": "domain"}],
}


def test_the_rules_are_sixteen_and_each_says_itself_in_its_docstring():
    assert list(advice.RULES) == [f"R{number}" for number in range(1, 17)] == list(SPEAKS) == list(SILENT)
    for name, rule in advice.RULES.items():
        assert rule.__name__.startswith(name.lower() + "_") and len(rule.__doc__.splitlines()) == 1


@pytest.mark.parametrize("name,known", [(name, known) for name in SPEAKS for known in SPEAKS[name]])
def test_a_rule_speaks(name, known):
    said = advice.RULES[name](known)
    assert said.rule == name and said.says and said.because
    assert set(said.sets) <= {*FIELDS, "mode_votes"}
    assert set(said.sets.get("mode_votes", {})) <= set(modes.MODES)
    override(Recipe(), **{field: value for field, value in said.sets.items() if field in FIELDS})


@pytest.mark.parametrize("name,known", [(name, known) for name in SILENT for known in [{}, *SILENT[name]]])
def test_a_rule_is_silent(name, known):
    assert advice.RULES[name](known) is None


def test_a_measured_gap_outweighs_what_the_user_says():
    measured = advice.RULES["R1"]({"base_loss": KNOWN_TEXT, "differs": True})
    assert set(measured.sets["mode_votes"]) == {"1", "6"} and "0.10 nats" in measured.because
    assert "2" in advice.RULES["R1"]({"base_loss": NEW_TEXT, "differs": False}).sets["mode_votes"]


MUCH, LITTLE = {"resources": "much", "rows": ALL_ROWS}, {"resources": "little", "rows": ALL_ROWS}
PLENTY = {"tokens": {"domain_text": 10**9}}
MODE_TABLE = [
    ("2", {}, set()),
    ("2", {**MUCH, "wants": "domain"}, {"R7"}),
    ("2", {**MUCH, "wants": "domain", "base_loss": NEW_TEXT}, {"R1", "R7"}),
    ("2", {**MUCH, **PLENTY, "wants": "domain", "base_loss": KNOWN_TEXT}, {"R2", "R7"}),
    ("1", {**MUCH, "wants": "domain", "base_loss": KNOWN_TEXT}, {"R1"}),
    ("3", {**MUCH, "wants": "domain", "related": True}, {"R5", "R7"}),
    ("3", {**MUCH, **PLENTY, "wants": "domain", "related": True, "base_loss": NEW_TEXT},
     {"R1", "R2", "R5", "R7"}),
    ("5", {**MUCH, "wants": "both"}, {"R6", "R7"}),
    ("5", {**MUCH, "wants": "both", "related": True, "base_loss": KNOWN_TEXT}, {"R6", "R7"}),
    ("4", {"wants": "both"}, {"R6"}),
    ("4", {"wants": "both", "base_loss": NEW_TEXT}, {"R1", "R6"}),
    ("6", LITTLE, {"R7"}),
    ("6", {**LITTLE, "wants": "both", "base_loss": NEW_TEXT}, {"R4", "R7"}),
    ("6", {**LITTLE, **PLENTY, "wants": "domain", "related": True, "base_loss": NEW_TEXT}, {"R7"}),
    ("6", {**LITTLE, "wants": "domain", "base_loss": KNOWN_TEXT}, {"R1", "R7"}),
    ("2", {"differs": True}, {"R1"}),
    ("1", {"differs": False}, {"R1"}),
]


@pytest.mark.parametrize("mode,known,rules", MODE_TABLE)
def test_the_suggested_mode_is_the_sum_of_the_rules(mode, known, rules):
    suggested, led = advice.suggest_mode(known)
    assert suggested == mode and {said.rule for said in led} == rules


@given(st.dictionaries(st.sampled_from(ROLES), st.integers(0, 5), min_size=1),
       st.sampled_from(["much", "little", None]), st.sampled_from(["domain", "both", None]), st.booleans())
def test_no_mode_without_its_rows_is_suggested(rows, resources, wants, related):
    known = {"rows": rows, "resources": resources, "wants": wants, "related": related}
    if not rows.get("domain_tasks"):
        with pytest.raises(BadInput, match="domain_tasks"):
            advice.suggest_mode(known)
        assert "domain_tasks" in advice.explain(Recipe(), known)
        return
    suggested, _ = advice.suggest_mode(known)
    assert all(rows.get(role) for role in modes.roles(modes.MODES[suggested]))


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
    assert resolved(known, method="freeze") == dataclasses.replace(full, method="freeze", cpt_method="freeze")
    prefix, lora = resolved(known, method="ptuning_v2"), resolved(known, method="lora")
    assert prefix.learning_rate > 5 * lora.learning_rate


def test_each_kind_of_stage_goes_by_its_own_method():
    known = {"pretraining_learning_rate": 3e-3}
    mixed = resolved(known, method="lora", cpt_method="full")
    assert mixed.cpt_learning_rate == resolved(known).cpt_learning_rate
    assert mixed.learning_rate == resolved(known, method="lora").learning_rate


def test_the_rate_the_user_names_comes_before_the_card():
    recipe, reasons = advice.resolve(override(Recipe(), pretraining_learning_rate=1e-2),
                                     {"pretraining_learning_rate": 3e-3})
    assert recipe.learning_rate == 1e-3 and "pretraining_learning_rate" not in reasons
    assert "assumed" in advice.resolve(Recipe(), {})[1]["pretraining_learning_rate"]
    assert "0.001 for SFT" in advice.explain(override(Recipe(), pretraining_learning_rate=1e-2), {})


def test_another_batch_moves_the_rate_by_its_square_root_within_bounds():
    rates = [resolved(per_device_train_batch_size=batch, gradient_accumulation_steps=steps).learning_rate
             for batch, steps in ((4, 1), (4, 2), (8, 1), (16, 1), (64, 8), (1, 1))]
    assert [round(rate / rates[0], 2) for rate in rates] == [1.0, 1.41, 1.41, 2.0, 2.0, 0.5]
    _, reasons = advice.resolve(override(Recipe(), per_device_train_batch_size=8), {})
    assert "8 blocks" in reasons["learning_rate"] and "blocks" not in reasons["cpt_learning_rate"]


def test_rates_are_capped():
    known = {"pretraining_learning_rate": 3e-3}
    assert resolved({"pretraining_learning_rate": 1.0}, method="ptuning_v2").learning_rate == 0.1
    large = override(Recipe(), method="lora", cpt_per_device_train_batch_size=64)
    recipe, reasons = advice.resolve(large, known)
    assert recipe.cpt_learning_rate == 5e-3 and "capped" in reasons["cpt_learning_rate"]


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
    ("cuda", True, 10**6, (True, False, "bfloat16")), ("cuda", False, 10**10, (False, True, "float16")),
    (None, None, None, (False, False, "float32")),
])
def test_what_the_device_decides(device, bf16, parameters, expected):
    this = resolved({"device": device, "bf16": bf16, "parameters": parameters})
    assert (this.bf16, this.gradient_checkpointing, this.bnb_4bit_compute_dtype) == expected


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
    "mode": st.sampled_from(sorted(modes.MODES)), "method": st.sampled_from(METHODS),
    "cpt_method": st.sampled_from(METHODS), "pretraining_learning_rate": st.floats(1e-8, 10),
    "learning_rate": st.floats(1e-9, 10), "cpt_learning_rate": st.floats(1e-9, 10),
    "warmup_ratio": st.floats(0, 0.9), "cpt_warmup_ratio": st.floats(0, 0.9),
    "num_train_epochs": st.floats(0.1, 50), "cpt_num_train_epochs": st.floats(0.1, 50),
    "per_device_train_batch_size": st.integers(1, 512),
    "cpt_per_device_train_batch_size": st.integers(1, 512),
    "gradient_accumulation_steps": st.integers(1, 64), "max_length": st.integers(8, 4096),
    "packing": st.booleans(),
    "bf16": st.booleans(), "gradient_checkpointing": st.booleans(), "max_new_tokens": st.integers(1, 512),
    "bnb_4bit_compute_dtype": st.sampled_from(["float32", "bfloat16"]),
    "general_share": st.sampled_from([0.0, 0.5]),
    "num_virtual_tokens": st.integers(1, 100),
})


@given(SET, KNOWN)
def test_resolving_fills_all_that_is_advised_and_touches_nothing_that_is_set(values, known):
    recipe = override(Recipe(), **values)
    full, reasons = advice.resolve(recipe, known)
    override(Recipe(), **dataclasses.asdict(full))  # every advised value passes the recipe's own checks
    for name in FIELDS:
        before, after = getattr(recipe, name), getattr(full, name)
        assert (after is None) == (name in NEVER_ADVISED and before is None), name
        assert before is None or before == after
        assert (name in reasons) == (before is None and after is not None)
    assert all(" because " in text for text in reasons.values())
    assert advice.resolve(full, known) == (full, {})


@given(SET, KNOWN)
def test_explain_fits_the_page(values, known):
    recipe = override(Recipe(), **values)
    text = advice.explain(recipe, known)
    assert all(len(line) <= 100 and line == line.rstrip() for line in text.splitlines())
    words = " ".join(text.split())
    for warning in advice.warnings(recipe, known):
        assert " ".join(warning.split()) in words


def test_explain_names_mode_rules_values_and_warnings():
    text = advice.explain(override(Recipe(), learning_rate=1.0), EVERYTHING)
    assert text.startswith("Suggested mode: 5 (base_mixed_cpt_mixed_sft)")
    for said in advice.suggest(EVERYTHING):
        assert f"\n  {said.rule} " in text
    assert {f"R{number}" for number in (1, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)} == {
        said.rule for said in advice.suggest(EVERYTHING)}
    assert "(R8)" in text and "(R9)" in text and "(R10)" in text
    assert "The recipe has mode 2." in text and "mode 2" not in advice.explain(Recipe(mode="5"), EVERYTHING)
    assert "learning_rate 1 is 3,333 times above the 0.0003 advised for full" in text
    columns = {line.index(value) for line in text.splitlines() for name, value in (
        ("  packing ", "True"), ("  bf16 ", "False"), ("  max_length ", "128")) if line.startswith(name)}
    assert len(columns) == 1


@pytest.mark.parametrize("values,known,words", [
    ({"learning_rate": 3e-3}, {"pretraining_learning_rate": 3e-3}, "0.003 is 10 times above the 0.0003"),
    ({"learning_rate": 3e-4, "method": "lora"}, {"pretraining_learning_rate": 3e-3}, "5 times below"),
    ({"cpt_learning_rate": 1.0}, {}, "cpt_learning_rate 1 is"),
    ({"warmup_ratio": 0.2}, {}, "warmup_ratio 0.2 is beyond 0.1"),
    ({"num_train_epochs": 1.0}, {"rows": ALL_ROWS}, "num_train_epochs 1 is less than half of the 6"),
    ({"general_share": 0.0, "mode": "4"}, {"wants": "both"}, "general_share is 0"),
    ({"mode": "6"}, {"wants": "both"}, "last stage of mode 6 has no general tasks"),
    ({"mode": "2"}, {"rows": {"domain_tasks": 5}}, "mode 2 lacks rows of domain_text"),
    ({"max_length": 64}, {"row_tokens": 100}, "drops longer tasks"),
    ({"max_length": 1024}, {"context": 512}, "exceeds the model's 512"),
    ({"max_new_tokens": 4}, {"answer_tokens": 9}, "cuts probe answers"),
    ({"method": "ptuning_v2", "packing": True}, {}, "packing does not go"),
    ({"method": "ptuning_v2", "gradient_checkpointing": True}, {}, "gradient_checkpointing does not go"),
    ({"bf16": True}, {"device": "cpu"}, "bf16 is on"),
])
def test_values_far_from_the_advice_are_warned_of(values, known, words):
    recipe = override(Recipe(), **values)
    assert [text for text in advice.warnings(recipe, known) if words in text]


@pytest.mark.parametrize("method", METHODS)
def test_the_advice_does_not_warn_of_itself(method):
    known = {**EVERYTHING, "wants": "domain"}
    recipe = override(Recipe(), method=method)
    assert advice.warnings(recipe, known) == advice.warnings(advice.resolve(recipe, known)[0], known) == []
    assert advice.warnings(override(recipe, mode="5"), EVERYTHING) == []


def test_an_unknown_mode_is_refused():
    with pytest.raises(BadInput, match="unknown mode"):
        advice.explain(Recipe(mode="base_cpt_sfd"), {})
