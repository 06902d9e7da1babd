"""Questions won and lost in a real JupyterLab: a row opens to its answers side by side, as plain text."""

import json

import pytest

from sftbench.recipes.recipe import Recipe, override, recipe_to_dict
from sftbench.runs.answers import AnsweredRow, write_answers
from tests import lab
from tests.test_compare import DONE
from tests.test_workbench import (
    NAME,
    PATIENCE,
    ROOT,
    nothing_is_cut_off,
    open_step,
    reach_all_by_tab,
)

HOSTILE = f"costs $5 and $6 {NAME}"


def answers(right: set[int], role: str = "domain_tasks") -> dict:
    return {role: [AnsweredRow(role, number, f"Question {number} {HOSTILE}?", "Oslo",
                               answer := "Oslo" if number in right else f"Lima {HOSTILE}", answer, "exact",
                               float(number in right), float(number in right), 2.0, 2)
                   for number in range(1, 9)]}


@pytest.fixture
def folder(tmp_path):
    """A notebook with the form, and two finished runs as they lie on disk."""
    (tmp_path / "workbench.ipynb").write_text((ROOT / "notebooks" / "workbench.ipynb").read_text())
    for name, last in (("one", {1, 2, 3}), ("two", {3, 4})):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        recipe = recipe_to_dict(override(Recipe(), mode="1" if name == "one" else "6"))
        for file, data in (("recipe.json", {}), ("result.json", {"complete": True, "state": "done", **DONE})):
            (run / file).write_text(json.dumps({"schema": 1, "recipe": recipe, **data}))
        (run / "events.jsonl").write_text("")
        write_answers(run, {"start": answers({1}), "domain_sft": answers(last)})
    return tmp_path


@pytest.mark.browser
@pytest.mark.timeout(600)
def test_rows_are_listed_between_states_and_open_side_by_side(folder):
    with lab.server(folder, PYTHONPATH=str(ROOT)) as address, lab.page() as page:
        lab.run_all(page, address("workbench.ipynb"))
        page.locator(".sftb-modes button").first.wait_for(timeout=PATIENCE)
        open_step(page, "4 Compare")
        rows = page.locator("button.sftb-item:visible")
        rows.first.wait_for(timeout=PATIENCE)
        page.locator(".sftb-pre:visible", has_text="+2 −0").wait_for()
        before, after = (page.get_by_label(name, exact=True) for name in ("before", "after"))
        before.select_option(label="one, domain_sft")
        after.select_option(label="two, domain_sft")
        page.get_by_label("rows", exact=True).select_option(label="lost")
        page.locator("button.sftb-item:visible", has_text="domain tasks 2").wait_for(timeout=PATIENCE)
        assert [text.split(" · ")[0] for text in rows.all_inner_texts()] == ["▸ right → wrong"] * 2
        rows.first.click()
        opened = page.locator(".sftb-answers:visible .sftb-pre")
        opened.first.wait_for(timeout=PATIENCE)
        assert opened.all_inner_texts() == ["Oslo", "Oslo", f"Lima {HOSTILE}"]
        tops = {round(box["y"]) for box in map(lambda one: one.bounding_box(), opened.all())}
        assert len(tops) == 1, "side by side"
        reach_all_by_tab(page)
        nothing_is_cut_off(page)
        assert page.evaluate("window.fired") is None
