"""The workbench's pictures in docs/: a real JupyterLab, four real runs on the pocket, one picture a step.

    python benchmarks/screenshots.py [--out docs] [--keep FOLDER]

Three runs are trained first, the fourth is started in the form and caught on its way. With `--keep` the runs
stay in a folder, and are not trained again.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import lab  # noqa: E402
from tests.test_workbench import MINUTE, open_step, press, toggle_fold, wait_for_status  # noqa: E402

RUNS = {"mode_2-full": ["2"], "mode_4-full": ["4"], "mode_6-full": ["6"]}


def train(folder: Path) -> None:
    """The runs to compare, each with every value as advised."""
    for name, words in RUNS.items():
        if not (folder / "runs" / name / "result.json").exists():
            subprocess.run([sys.executable, "-m", "sftbench", "run", *words, "--out", folder / "runs" / name],
                           check=True, cwd=ROOT)


def picture(page, out: Path, step: str, top=None) -> None:
    """The page with the form, or a part of it, at its top."""
    (top or page.locator(".sftb-title")).evaluate("one => one.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(1500)
    page.screenshot(path=out / f"workbench_{step}.png")


def take(page, address: str, out: Path) -> None:
    """One picture of each of the five steps."""
    lab.run_all(page, address)
    page.locator(".sftb-modes button", has_text="4").click(timeout=MINUTE)
    page.locator(".sftb-pair button", has_text="lora").first.click()
    page.locator(".jp-SideBar .lm-mod-current").first.click()  # the list of files makes room
    picture(page, out, "choose")
    open_step(page, "2 Look")
    wait_for_status(page, "Looked at the data", 2 * MINUTE)
    picture(page, out, "look")
    open_step(page, "3 Train")
    press(page, "Start")
    page.locator(".sftb-bars .widget-label", has_text=re.compile(r"^6\d%")).wait_for(timeout=10 * MINUTE)
    picture(page, out, "train")
    wait_for_status(page, "is done", 10 * MINUTE)
    finish(page, out)


def finish(page, out: Path) -> None:
    """The pictures of comparing and talking, for which all runs must be done."""
    open_step(page, "4 Compare")
    marks = page.locator(".sftb-runs input")
    marks.nth(len(RUNS)).wait_for(timeout=MINUTE)
    for number in range(len(RUNS) + 1):
        marks.nth(number).check()
    page.wait_for_timeout(5000)
    toggle_fold(page, "What their recipes differ in")
    picture(page, out, "compare")
    page.locator("button.sftb-item:visible").nth(1).click()
    picture(page, out, "rows", page.locator("button.sftb-fold", has_text="Questions won and lost"))
    open_step(page, "5 Talk")
    page.get_by_label("checkpoints", exact=True).select_option(index=[0, 1, 4])
    press(page, "Ask")
    page.locator(".sftb-answers:visible").first.wait_for(timeout=2 * MINUTE)
    picture(page, out, "talk")


def main() -> None:
    """Train, open, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--keep", type=Path, default=None)
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="sftbench-screenshots-"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "workbench.ipynb").write_text((ROOT / "notebooks" / "workbench.ipynb").read_text())
    train(folder)
    with lab.server(folder, PYTHONPATH=str(ROOT)) as address, lab.page() as page:
        take(page, address("workbench.ipynb"), options.out)


if __name__ == "__main__":
    main()
