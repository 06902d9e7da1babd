"""A mode's notebook in a real JupyterLab and browser: run all cells, see the live plot and the ledger."""

import os
import re
from pathlib import Path

import pytest

from tests import lab

ROOT = Path(__file__).parent.parent


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_a_notebook_runs_in_jupyterlab(tmp_path):
    source = next((ROOT / "notebooks").glob("mode_6_*.ipynb")).read_text()
    assert "max_steps: int = None" in source
    (tmp_path / "short.ipynb").write_text(source.replace("max_steps: int = None", "max_steps: int = 30"))
    with lab.server(tmp_path) as address, lab.page() as page:
        lab.run_all(page, address("short.ipynb"))
        page.wait_for_function("() => document.querySelector('.jp-OutputArea img')", timeout=180_000)
        cells = page.locator(".jp-Notebook")
        page.wait_for_function(
            "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every("
            "prompt => /\\[\\d+\\]/.test(prompt.textContent))", timeout=180_000)
        text = cells.inner_text()
        picture = os.environ.get("SFTBENCH_SCREENSHOT")
        if picture:
            page.locator("[id=train], .jp-OutputArea img").first.scroll_into_view_if_needed()
            page.screenshot(path=picture)
    assert "Traceback" not in text and re.search(r"done after \d+ s", text)
    assert "start (chat)" in text and "domain_sft" in text
    runs = list((tmp_path / "runs").glob("mode_6-full-*"))
    assert len(runs) == 1 and (runs[0] / "result.json").exists() and (runs[0] / "loss.png").exists()
