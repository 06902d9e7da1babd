"""The modes as data, the mixing knobs, and modes from TOML files."""

import pytest

from sftbench.recipes.modes import MODES, format_chain, load_mode, recipe_stages
from sftbench.recipes.recipe import Recipe, override
from tests.conftest import bad_input

TABLE = {
    "1": ("base", ["sft"]), "2": ("base", ["cpt", "sft"]), "3": ("base", ["cpt", "sft", "sft"]),
    "4": ("base", ["cpt", "sft"]), "5": ("base", ["cpt", "sft"]), "6": ("chat", ["sft"]),
    "7": ("chat", ["cpt", "sft"]),
}


def test_the_seven_modes_are_the_table():
    assert {number: (mode.start, [stage.kind for stage in mode.stages])
            for number, mode in MODES.items()} == TABLE
    assert list(load_mode("5").stages[0].shares) == [
        "domain_text", "general_tasks", "domain_tasks"]
    assert set(load_mode("4").stages[1].shares) == {"domain_tasks", "general_tasks"}


@pytest.mark.parametrize("number", TABLE)
def test_shares_add_up_with_and_without_the_knobs(number):
    for knobs in ({}, {"general_share": 0.9}, {"task_share": 0.5}, {"general_share": 0.1, "task_share": 0.2}):
        for stage in recipe_stages(override(Recipe(), mode=number, **knobs)):
            assert sum(stage.shares.values()) == pytest.approx(1)


def test_the_knobs_do_what_they_say():
    cpt, sft = recipe_stages(override(Recipe(), mode="5", general_share=0.75, task_share=0.4))
    assert cpt.shares == pytest.approx({"domain_text": 0.6, "general_tasks": 0.3, "domain_tasks": 0.1})
    assert sft.shares == pytest.approx({"domain_tasks": 0.25, "general_tasks": 0.75})
    assert recipe_stages(override(Recipe(), general_share=0.75, task_share=0.4)) == load_mode("2").stages


def test_names_serve_too_and_typing_errors_are_answered():
    assert load_mode("base_cpt_sft") is MODES["2"]
    with bad_input("mode", match="'base_cpt_sft'"):
        load_mode("base_cpt_sf")
    with bad_input("mode", match="1 to 7"):
        load_mode("8")


GOOD = """
name = "mine"
sentence = "Text inside SFT."
start = "base"
[[stages]]
name = "cpt"
kind = "cpt"
shares = { domain_text = 1 }
[[stages]]
name = "sft"
kind = "sft"
shares = { domain_tasks = 3, general_text = 1 }
"""


def test_a_mode_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    mode = load_mode(str(path))
    assert mode.stages[1].shares == {"domain_tasks": 0.75, "general_text": 0.25}
    assert mode.roles == ["domain_text", "domain_tasks", "general_text"]
    assert "75% domain tasks" in format_chain(mode)


@pytest.mark.parametrize(("old", "new", "field", "stage", "remedy"), [
    ('start = "base"', 'start = "middle"', "start", "", "'base' or 'chat'"),
    ('kind = "sft"', 'kind = "rl"', "kind", ": stage 2", "'cpt' or 'sft'"),
    ("domain_tasks = 3", "domain_task = 3", "domain_task", ": stage 2", "'domain_tasks'"),
    ("domain_tasks = 3", "domain_tasks = 0", "domain_tasks", ": stage 2", "above 0"),
    ('name = "sft"', 'name = "cpt"', "name", ": stage 2", None),
    ('name = "sft"', 'name = "../x"', "name", ": stage 2", None),
    ('sentence = "Text inside SFT."', "", "sentence", "", None),
    ("[[stages]]", "[[stages", "mode", "", "TOML"),
    ('start = "base"', 'start = "base"\nmethod = "lora"', "method", "", "in the recipe"),
    ('kind = "sft"', 'kind = "sft"\nlearning_rate = 1e-3', "learning_rate", ": stage 2", "in the recipe"),
    ('kind = "sft"', 'kind = "sft"\nshare = 1.0', "share", ": stage 2", "'shares'"),
])
def test_a_bad_mode_file_is_named_with_its_stage(tmp_path, old, new, field, stage, remedy):
    path = tmp_path / "bad.toml"
    path.write_text(GOOD.replace(old, new))
    with bad_input(field, f"{path}{stage}", match=remedy):
        load_mode(str(path))


def test_a_missing_mode_file_is_named():
    with bad_input("mode", "nowhere.toml"):
        load_mode("nowhere.toml")


def test_a_single_table_of_stages_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "x"\nsentence = "x"\nstart = "base"\n[stages]\nname = "cpt"\nkind = "cpt"\n')
    with bad_input("stages", path, match=r"\[\[stages\]\]"):
        load_mode(str(path))
