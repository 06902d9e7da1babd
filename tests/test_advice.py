"""The advice: each rule speaks in its case, the rules add up to a mode, and the text fits one page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftbench.errors import BadInput
from sftbench.recipes.facts import Facts
from sftbench.recipes.hyperparameters import resolve_recipe
from sftbench.recipes.modes import MODES
from sftbench.recipes.recipe import METHODS, ROLES, Recipe, override
from sftbench.recipes.rules import RULES, advise, apply_rules, suggest_mode
from sftbench.recipes.warnings import recipe_warnings
from sftbench.reports.text import explain_advice
from tests.conftest import bad_input
from tests.test_hyperparameters import ALL_ROWS, KNOWN, SET, facts


def explain(recipe: Recipe, facts: Facts) -> str:
    """The advice as text."""
    return explain_advice(advise(recipe, facts))


NEW_TEXT = {"domain_text": 3.0, "general_text": 2.0}
KNOWN_TEXT = {"domain_text": 2.1, "general_text": 2.0}
EVERYTHING = {
    "rows": ALL_ROWS, "tokens": {"domain_text": 2 * 10**9}, "base_loss": {**NEW_TEXT, "domain_tasks": 2.5},
    "wants": "both", "resources": "much", "related": True, "task_types": 3, "system_prompts": False,
    "pretraining_learning_rate": 3e-3, "device": "cpu", "bf16": False, "context": 512, "row_tokens": 60,
    "answer_tokens": 6, "vocabulary": 2048, "parameters": 900_000,
    "base_accuracy": {"domain_tasks": 0.1, "general_tasks": 0.6},
}


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


def test_the_rules_are_sixteen_and_each_states_itself_in_its_docstring():
    assert list(RULES) == [f"R{number}" for number in range(1, 17)] == list(SPEAKS) == list(SILENT)
    for name, rule in RULES.items():
        assert rule.__name__.startswith(name.lower() + "_") and len(rule.__doc__.splitlines()) == 1


@pytest.mark.parametrize("name,known", [(name, known) for name in SPEAKS for known in SPEAKS[name]])
def test_a_rule_speaks(name, known):
    suggestion = RULES[name](facts(known))
    assert suggestion.rule == name and suggestion.advice and suggestion.reason
    assert set(suggestion.votes) <= set(MODES)


@pytest.mark.parametrize("name,known", [(name, known) for name in SILENT for known in [{}, *SILENT[name]]])
def test_a_rule_is_silent(name, known):
    assert RULES[name](facts(known)) is None


def test_a_measured_gap_outweighs_what_the_user_says():
    measured = RULES["R1"](facts({"base_loss": KNOWN_TEXT, "differs": True}))
    assert set(measured.votes) == {"1", "6"} and "0.10 nats" in measured.reason
    assert "2" in RULES["R1"](facts({"base_loss": NEW_TEXT, "differs": False})).votes


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
    suggested, voters = suggest_mode(facts(known))
    assert suggested == mode and {suggestion.rule for suggestion in voters} == rules


@given(st.dictionaries(st.sampled_from(ROLES), st.integers(0, 5), min_size=1),
       st.sampled_from(["much", "little", None]), st.sampled_from(["domain", "both", None]), st.booleans())
def test_no_mode_without_its_rows_is_suggested(rows, resources, wants, related):
    known = {"rows": rows, "resources": resources, "wants": wants, "related": related}
    if not rows.get("domain_tasks"):
        with pytest.raises(BadInput) as refusal:
            suggest_mode(facts(known))
        assert refusal.value.field == "domain_tasks"
        assert "domain_tasks" in explain(Recipe(), facts(known))
        return
    suggested, _ = suggest_mode(facts(known))
    assert all(rows.get(role) for role in MODES[suggested].roles)


@pytest.mark.parametrize("mode,known", [
    ("2", LITTLE), ("4", {**LITTLE, "wants": "both"}), ("1", {**LITTLE, "rows": {"domain_tasks": 5}}),
    ("1", {**LITTLE, "wants": "domain", "base_loss": KNOWN_TEXT}),
])
def test_without_a_chat_model_another_mode_takes_its_place(mode, known):
    for stated in ({}, {"chat_model": None}, {"chat_model": True}):
        assert suggest_mode(facts({**known, **stated}))[0] == "6"
    assert suggest_mode(facts({**known, "chat_model": False}))[0] == mode
    text = explain(Recipe(mode="6"), facts({**known, "chat_model": False}))
    assert text.startswith(f"Suggested mode: {mode} ")


@given(KNOWN)
def test_without_a_chat_model_no_mode_starts_from_one(known):
    known = {**known, "chat_model": False}
    if known.get("rows") and not known["rows"].get("domain_tasks"):
        with pytest.raises(BadInput) as refusal:
            suggest_mode(facts(known))
        assert refusal.value.field == "domain_tasks"
    else:
        assert MODES[suggest_mode(facts(known))[0]].start == "base"


@given(SET, KNOWN)
def test_explain_fits_the_page(values, known):
    recipe = override(Recipe(), **values)
    text = explain(recipe, facts(known))
    assert all(len(line) <= 100 and line == line.rstrip() for line in text.splitlines())
    words = " ".join(text.split())
    for warning in recipe_warnings(recipe, facts(known)):
        assert " ".join(warning.split()) in words


def test_explain_names_mode_rules_values_and_warnings():
    text = explain(override(Recipe(), learning_rate=1.0), facts(EVERYTHING))
    assert text.startswith("Suggested mode: 5 (base_mixed_cpt_mixed_sft)")
    for suggestion in apply_rules(facts(EVERYTHING)):
        assert f"\n  {suggestion.rule} " in text
    assert {f"R{number}" for number in (1, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)} == {
        suggestion.rule for suggestion in apply_rules(facts(EVERYTHING))}
    assert "(R8)" in text and "(R9)" in text and "(R10)" in text
    assert "The recipe has mode 2." in text
    assert "mode 2" not in explain(Recipe(mode="5"), facts(EVERYTHING))
    assert "learning_rate 1 is 3,333 times above the 0.0003 advised for full" in text
    columns = {line.index(value) for line in text.splitlines() for name, value in (
        ("  packing ", "True"), ("  bf16 ", "False"), ("  max_length ", "128")) if line.startswith(name)}
    assert len(columns) == 1


def test_explain_goes_by_the_rate_the_user_names():
    assert "0.001 for SFT" in explain(override(Recipe(), pretraining_learning_rate=1e-2), facts({}))


@pytest.mark.parametrize("values,known,words", [
    ({"general_share": 0.0, "mode": "4"}, {"wants": "both"}, "general_share is 0"),
    ({"mode": "6"}, {"wants": "both"}, "last stage of mode 6 has no general tasks"),
    ({"mode": "2"}, {"rows": {"domain_tasks": 5}}, "mode 2 lacks rows of domain_text"),
    ({"bf16": True}, {"device": "cpu"}, "bf16 is on"),
])
def test_modes_and_values_far_from_the_advice_are_warned_of(values, known, words):
    recipe = override(Recipe(), **values)
    assert [text for text in recipe_warnings(recipe, facts(known)) if words in text]


@pytest.mark.parametrize("method", METHODS)
def test_the_advice_does_not_warn_of_itself(method):
    known = facts({**EVERYTHING, "wants": "domain"})
    recipe = override(Recipe(), method=method)
    assert recipe_warnings(recipe, known) == []
    assert recipe_warnings(resolve_recipe(recipe, known)[0], known) == []
    assert recipe_warnings(override(recipe, mode="5"), facts(EVERYTHING)) == []


def test_an_unknown_mode_is_refused():
    with bad_input("mode", match="'base_cpt_sft'"):
        explain(Recipe(mode="base_cpt_sfd"), facts({}))


@pytest.mark.parametrize(("values", "names"), [
    ({"lora_r": 8}, ["lora_r"]), ({"method": "lora", "lora_r": 8}, []),
    ({"method": "full", "cpt_method": "lora", "lora_r": 8, "trainable_parts": "head"}, ["trainable_parts"]),
    ({"method": "freeze", "bnb_4bit_quant_type": "fp4", "use_dora": True},
     ["use_dora", "bnb_4bit_quant_type"]),
    ({"mode": "1", "cpt_learning_rate": 3e-4, "cpt_method": "lora"}, ["cpt_method", "cpt_learning_rate"]),
    ({"mode": "1", "domain_text": "a.txt"}, ["domain_text"]), ({"mode": "2", "domain_text": "a.txt"}, []),
    ({"task_share": 0.2, "general_share": 0.2}, ["general_share", "task_share"]),
    ({"mode": "4", "general_share": 0.2}, []), ({"chat_model": "pocket-chat"}, ["chat_model"]),
    ({"mode": "6", "chat_model": "pocket-chat"}, []), ({"pocket_seed": 3}, []),
    ({"mode": "6", "chat_model": "a/b", "model": "c/d", "pocket_seed": 3}, ["model", "pocket_seed"]),
    ({"method": "ptuning_v2", "prefix_init": "random", "prefix_init_text": "x"}, ["prefix_init_text"]),
])
def test_values_that_nothing_reads_are_named(values, names):
    recipe = override(Recipe(), **values)
    known = facts({"pocket": not values.get("chat_model", "").startswith("a/")})
    warned = [text.split()[0] for text in recipe_warnings(recipe, known) if "is set and not used" in text]
    assert sorted(warned) == sorted(names)
    resolved = recipe_warnings(resolve_recipe(recipe, known)[0], known)
    assert [text.split()[0] for text in resolved if "is set and not used" in text] == warned
