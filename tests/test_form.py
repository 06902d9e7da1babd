"""The form without a browser: its controls make the recipe, and what is refused changes nothing."""

import json
import shlex
import time

import ipywidgets as widgets
import pytest
from hypothesis import HealthCheck, given, settings

from sftbench.cli import parse_command
from sftbench.recipes.facts import Facts
from sftbench.recipes.modes import MODES, recipe_stages
from sftbench.recipes.pretraining_rates import guess_rate
from sftbench.recipes.recipe import FIELDS, METHODS, Recipe, override, recipe_to_dict
from sftbench.recipes.serialize import parse_cell
from sftbench.runs.events import append_event
from sftbench.runs.folder import read_result, write_json
from sftbench.workbench import form as form_module
from sftbench.workbench.fields import GROUPS, advised_values, fields_in_use, parse_entry
from sftbench.workbench.form import Form
from sftbench.workbench.step_choose import format_shares, impossible_methods, impossible_modes, suggestion
from tests.test_spell import recipes


@pytest.fixture(scope="module")
def form():
    """One form for all tests; each begins with a fresh recipe."""
    return Form()


@pytest.fixture(autouse=True)
def fresh(form):
    form.recipe = Recipe()
    form.errors, form.facts = {}, Facts()
    form.stated = {}
    form.status.report("")


def everything(widget):
    """The controls and labels that the widget holds."""
    if hasattr(widget, "description"):
        yield widget
    for child in getattr(widget, "children", ()):
        yield from everything(child)


def buttons(form, words: str) -> list:
    return [control for control in everything(form.widget)
            if isinstance(control, widgets.Button) and words in control.description]


def texts(form) -> list[str]:
    """The recipe as a command and as a parameters cell."""
    return [control.value for control in everything(form.widget) if control.description.startswith("as a ")]


def press(form, words: str) -> None:
    (control,) = buttons(form, words)
    control.click()


def enter(form, name: str, value) -> None:
    form.controls[name].value = value


def test_every_field_of_a_recipe_has_a_control(form):
    assert set(form.controls) | {"method", "cpt_method"} == set(FIELDS)
    assert len(buttons(form, "○")) + len(buttons(form, "●")) == len(MODES) + 2 * len(METHODS) + 1


def test_buttons_and_controls_make_the_recipe(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my text.jsonl").touch()
    press(form, "○ 4")
    buttons(form, "○ lora")[0].click()
    enter(form, "learning_rate", "2e-3")
    enter(form, "packing", False)
    enter(form, "lora_r", " 8 ")
    enter(form, "domain_text", "my text.jsonl")
    assert form.recipe == override(Recipe(), mode="4", method="lora", learning_rate=2e-3, packing=False,
                                   lora_r=8, domain_text="my text.jsonl")
    enter(form, "learning_rate", "")
    enter(form, "packing", "")
    enter(form, "lora_r", "")
    assert form.recipe == override(Recipe(), mode="4", method="lora", domain_text="my text.jsonl")


@pytest.mark.parametrize(("name", "text", "words"), [
    ("learning_rate", "fast", "must be a number"), ("lora_r", "8.5", "must be a whole number"),
    ("seed", "-1", "at least 0"), ("learning_rate", "nan", "finite"),
    ("mode", "9", "unknown mode"), ("domain_text", "-x", "may not be"),
    ("domain_text", "nowhere.jsonl", "no such file"), ("general_tasks_probe", "qa=no.csv:2", "no such file"),
    ("model", "./nowhere", "no such folder")])
def test_what_is_no_value_is_reported_and_changes_nothing(form, name, text, words):
    before = form.recipe
    enter(form, name, text)
    assert form.recipe == before and words in form.status.label.value
    assert "sftb-warn" in form.status.label._dom_classes and list(form.errors) == [name]
    enter(form, name, "")
    assert form.errors == {}


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=40)
@given(recipes())
def test_any_recipe_goes_in_and_comes_out_in_all_three_lives(form, recipe):
    form.errors = {}  # of the example before
    recipe = override(recipe, mode="4")  # a text that names no mode has no chain to show
    form.recipe = recipe
    assert form.recipe == recipe
    command, cell = texts(form)
    _, options = parse_command(shlex.split(command)[1:])
    assert options["recipe"] == recipe == parse_cell(cell)
    for name, control in form.controls.items():  # to enter what a control shows changes nothing
        if isinstance(control.value, str) and control.value != control.value.strip():
            continue  # spaces around an entry are taken for slips of a hand
        assert override(recipe, **{name: parse_entry(name, control.value)}) == recipe, name


def test_a_rate_ten_times_too_high_is_marked_beside_its_control(form):
    enter(form, "learning_rate", "1e-4")
    shown = [control.value for control in everything(form.widget) if isinstance(control, widgets.Label)
            and "sftb-warn" in control._dom_classes and "learning_rate" in control.value]
    assert shown == ["! learning_rate 0.0001 is 10 times above the 1e-05 advised for full (R8)"]
    assert any("1 to look at" in control.description for control in buttons(form, "Values"))
    enter(form, "learning_rate", "")
    assert buttons(form, "all as advised")


def test_advised_values_follow_what_is_known(form):
    assert advised_values(Recipe(), Facts())["num_train_epochs"].value == 3
    assert advised_values(Recipe(), Facts(rows={"domain_tasks": 100_000}))["num_train_epochs"].value == 2
    rate = advised_values(override(Recipe(), learning_rate=5.0), Facts())["learning_rate"].value
    assert rate == pytest.approx(1e-5)
    form.facts = Facts(rows=dict.fromkeys(("domain_text", "domain_tasks"), 100_000))
    assert form.controls["num_train_epochs"].placeholder == "2"


def test_names_that_a_hub_may_have_are_accepted(form):
    enter(form, "domain_text", "owner/texts#train:2, text=owner/more")
    enter(form, "model", "owner/model")
    assert (form.recipe.domain_text, form.recipe.model, form.errors) == (
        "owner/texts#train:2, text=owner/more", "owner/model", {})


def test_what_was_counted_is_forgotten_with_the_data(form):
    form.facts = Facts(rows={"domain_tasks": 5})
    enter(form, "learning_rate", "1e-5")
    assert form.facts.rows
    enter(form, "domain_tasks", "owner/other")
    assert form.facts.rows is None and form.facts.pretraining_learning_rate == 0.002


def test_a_new_form_advises_by_the_start_models_own_card(make_model):
    form = Form()
    assert [form.controls[name].placeholder for name in ("learning_rate", "pretraining_learning_rate")] == [
        "0.0002", "0.002"]
    form.set(model=make_model())
    guess = guess_rate(form.facts.hidden_size, "qwen3")  # a model without a card
    assert form.controls["pretraining_learning_rate"].placeholder == f"{guess:g}" != "0.002"


def test_what_is_to_be_corrected_shows_beside_its_control_and_where_it_hinders(form, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTBENCH_RUNS", str(tmp_path))
    enter(form, "domain_tasks", "nowhere.jsonl")
    shown = [control.value for control in everything(form.widget) if isinstance(control, widgets.Label)
            and control.value.startswith("! domain_tasks: nowhere.jsonl: no such file")]
    assert len(shown) == 2, "beside its control and in the status line"
    assert buttons(form, "something to correct")
    command, cell = texts(form)
    assert command == cell and command.startswith("# first correct domain_tasks: nowhere.jsonl: no such file")
    for step in ("train", "look"):
        form.steps.value = step
    assert "nowhere.jsonl: no such file" in form.parts["train"].warnings.value
    assert "nowhere.jsonl: no such file" in form.parts["look"].note.value
    form.parts["train"].start()
    until = time.monotonic() + 10
    while "first correct" not in form.status.label.value and time.monotonic() < until:
        time.sleep(0.02)
    assert "first correct domain_tasks: nowhere.jsonl" in form.status.label.value
    assert not list(tmp_path.iterdir())
    enter(form, "domain_tasks", "")
    assert form.status.label.value == "" and form.errors == {} and "sftbench run" in texts(form)[0]
    form.steps.value = "choose"


def test_bfloat16_is_greyed_where_the_machine_has_none(form):
    assert not form.controls["bf16"].disabled, "nothing is known yet"
    form.facts = Facts(bf16=False, device="cuda")
    assert form.controls["bf16"].disabled
    assert any("not known to have bfloat16" in control.value for control in everything(form.widget)
               if isinstance(control, widgets.Label))
    form.recipe = override(Recipe(), bf16=True)
    assert not form.controls["bf16"].disabled, "a loaded value can be taken back"


def test_only_what_has_an_effect_is_shown():
    def used(**values):
        recipe = override(Recipe(), **values)
        return fields_in_use(recipe)
    assert not used(mode="1") & set(GROUPS["CPT stages"]) and "general_share" not in used(mode="2")
    assert "task_share" in used(mode="5") and "lora_r" in used(method="qlora")
    assert "bnb_4bit_quant_type" not in used(method="lora")
    assert {"num_virtual_tokens", "trainable_parts"} <= used(method="freeze", cpt_method="ptuning_v2")


def test_a_chain_that_cannot_be_is_greyed_with_the_reason(form):
    form.set(cpt_method="ptuning_v2", method="ptuning_v2")
    reasons = impossible_methods(form.recipe)
    assert set(reasons) == set(METHODS) - {"ptuning_v2"} and "cannot be merged" in reasons["lora"]
    lora, cpt_lora = buttons(form, "○ lora")
    assert lora.disabled and "cannot be merged" in lora.tooltip and not cpt_lora.disabled
    form.set(mode="1")
    assert not buttons(form, "○ lora")[0].disabled


def test_modes_without_model_or_data_are_greyed_with_the_reason(form):
    recipe = override(Recipe(), model="my/model")
    assert set(impossible_modes(recipe, Facts())) == {"6", "7"}
    missing = impossible_modes(Recipe(), Facts(rows={"domain_text": 5, "domain_tasks": 5}))
    assert set(missing) == {"3", "4", "5"} and "general_tasks" in missing["3"]
    form.recipe = recipe
    assert buttons(form, "○ 6")[0].disabled and not buttons(form, "○ 5")[0].disabled


def test_the_drawing_shares_what_the_modes_share(form):
    boxes = {control.layout.grid_area: control.value for control in everything(form.widget)
             if isinstance(control, widgets.Label) and "sftb-box" in control._dom_classes}
    assert boxes["1 / 2 / 6 / 3"] == "base" and boxes["6 / 2 / 8 / 3"] == "chat"
    assert boxes["2 / 3 / 5 / 4"] == "CPT\ndomain text"  # modes 2 to 4
    prefixes = {(mode.start, *(stage.name for stage in mode.stages[:depth]))
                for mode in MODES.values() for depth in range(len(mode.stages) + 1)}
    assert len(boxes) == len(prefixes)


def test_shares_in_words():
    shares = [format_shares(stage.shares) for stage in recipe_stages(
        override(Recipe(), mode="5", general_share=0.5, task_share=0.2))]
    assert shares == ["80% text + 20% tasks", "50% domain + 50% general"]


def test_four_questions_lead_to_a_mode_with_its_rules(form):
    assert suggestion(Facts(wants="both", resources="much"))[0] == "5"
    best, rules = suggestion(Facts(resources="little"))
    assert best == "6" and rules[0].startswith("R7")
    questions = {control.description: control for control in everything(form.widget)
                 if isinstance(control, widgets.Dropdown)}
    questions["What counts in the end?"].value = "general ability too"
    questions["How much hardware and time is there?"].value = "much"
    press(form, "Take mode 5")
    assert form.recipe.mode == "5"


def test_a_run_is_loaded_and_a_wrong_path_is_reported(form, tmp_path):
    recipe = override(Recipe(), mode="5", method="freeze", seed=7)
    (tmp_path / "recipe.json").write_text(json.dumps({"schema": 1, "recipe": recipe_to_dict(recipe)}))
    form.load(str(tmp_path))
    assert form.recipe == recipe
    form.load(str(tmp_path / "gone"))
    assert form.recipe == recipe and "no such file" in form.status.label.value


def test_an_error_in_a_callback_shows_in_the_status_line_and_the_form_goes_on(form, monkeypatch, caplog):
    def broken(path):
        raise RuntimeError("put in on purpose")
    monkeypatch.setattr(form_module, "read_recipe", broken)
    form.load("anything")
    assert form.status.label.value == "! RuntimeError: put in on purpose" and "on purpose" in caplog.text
    press(form, "○ 6")
    assert form.recipe.mode == "6"


def test_a_form_opened_after_a_stop_shows_the_run_and_that_resume_is_next(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTBENCH_RUNS", str(tmp_path))
    folder = tmp_path / "mine"
    folder.mkdir()
    mine = override(Recipe(), mode="2", method="lora", seed=3)
    write_json(folder / "recipe.json", {"schema": 1, "recipe": recipe_to_dict(mine)})
    append_event(folder, {"stage": "start", "step": 0, "plan": {"cpt": 30, "domain_sft": 10}})
    append_event(folder, {"stage": "cpt", "step": 12, "loss": 2.0, "learning_rate": 1e-3, "tokens": 9})
    write_json(folder / "result.json", {"schema": 1, "complete": False, "state": "stopped"})
    form = Form()
    step = form.parts["train"]
    until = time.monotonic() + 30
    while not step.picture.value and time.monotonic() < until:
        time.sleep(0.05)
    assert "mine has stopped before its end" in form.status.label.value and form.steps.value == "choose"
    assert form.recipe == mine
    assert step.headline.value.startswith("mine: stopped") and step.picture.value[:4] == b"\x89PNG"
    assert not step.resume_button.disabled and "sftb-main" in step.resume_button._dom_classes
    assert "sftb-main" not in step.start_button._dom_classes
    form.close()


def test_on_a_jupyterhub_the_recipe_is_offered_as_a_cell_that_trains_in_the_kernel(monkeypatch, make_model,
                                                                                   small_files, tmp_path):
    recipe = override(Recipe(), mode="1", model=make_model(), max_steps=2, probe_rows=4, max_new_tokens=2,
                      output_dir=str(tmp_path / "run"), **small_files)

    def cell(form):
        return next(control for control in everything(form.widget) if control.description == "cell")

    def note(form):
        return next(box for box in form.parts["train"].widget.children if cell(form) in everything(box))
    assert note(Form(recipe)).layout.display == "none"
    monkeypatch.setenv("JUPYTERHUB_API_URL", "http://127.0.0.1:8081/hub/api")
    form = Form(recipe)
    assert note(form).layout.display != "none"
    form.set(seed=5)
    namespace = {}
    exec(cell(form).value, namespace)
    assert namespace["recipe"] == override(recipe, seed=5)
    assert read_result(tmp_path / "run")["recipe"]["seed"] == 5
    enter(form, "seed", "-5")
    assert cell(form).value.startswith("# first correct seed")


def test_every_control_has_a_name_and_can_be_reached(form):
    for control in everything(form.widget):
        if isinstance(control, (widgets.Text, widgets.Textarea, widgets.Dropdown, widgets.Button)):
            assert control.description.strip(), control
            assert control.tabbable is not False


@pytest.mark.slow
def test_learning_rates_that_were_tried_are_shown_and_go_into_the_recipe(form, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTBENCH_RUNS", str(tmp_path))
    form.set(mode="2", method="lora")
    press(form, "Try learning rates")
    until = time.monotonic() + 300
    while form.status.label.value == "" and time.monotonic() < until:
        time.sleep(0.2)
    part = form.parts["look"].rates
    (curve,) = tmp_path.rglob("rates.json")
    assert form.status.label.value == f"The curve is kept in {curve.parent}."
    assert part.picture.value == curve.with_name("rates.png").read_bytes() and part.note.value == ""
    tried = {f"{'cpt_' * (test['kind'] == 'cpt')}learning_rate": test["chosen"]
             for test in json.loads(curve.read_text())["tests"]}
    assert set(tried) == {"learning_rate", "cpt_learning_rate"} and None not in tried.values()
    assert {name: getattr(form.recipe, name) for name in tried} == dict.fromkeys(tried)
    press(form, "Take them")
    assert {name: getattr(form.recipe, name) for name in tried} == tried
    form.helper.close()
    form.helper = None
