"""The workbench in a real JupyterLab and browser, from choice to talk; start and stop on three kernels."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sftbench.workers.client import running_folders, stop_run
from tests import lab

ROOT = Path(__file__).parent.parent
MINUTE = 60_000  # in the browser's milliseconds
PATIENCE = 3 * MINUTE  # for what takes seconds on a machine that does nothing else
TEXT = 'What <img src=x onerror="window.fired=1"> costs $5 and $6, number {}?'
ANSWER = "<script>window.fired=1</script> {}"
NAME = '<img src=x onerror="window.fired=1">'
KERNELS = {"6.31.0": ["ipykernel==6.31.0", "nest-asyncio==1.6.0"], "7.3.0": ["ipykernel==7.3.0"], "7.4.0": []}


@pytest.fixture(params=[pytest.param(version, id=f"ipykernel-{version}") for version in KERNELS])
def kernel(request, tmp_path):
    """The environment in which JupyterLab starts this version of the kernel; older ones are in a cache."""
    path = [str(ROOT)]
    if KERNELS[request.param]:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sftbench-tests"
        packages = cache / f"ipykernel-{request.param}"
        if not (packages / "ipykernel_launcher.py").exists():
            subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", packages,
                            *KERNELS[request.param]], check=True, timeout=200)
        path.insert(0, str(packages))
    spec = tmp_path / "share" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3 (ipykernel)", "language": "python",
        "env": {"PYTHONPATH": os.pathsep.join(path)}}))
    return request.param, {"JUPYTER_PATH": str(tmp_path / "share"),
                           "HF_DATASETS_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def notebook(tmp_path):
    """The folder with the workbench's notebook, which also prints its kernel's version, and hostile rows."""
    book = json.loads((ROOT / "notebooks" / "workbench.ipynb").read_text())
    code = next(cell for cell in book["cells"] if cell["cell_type"] == "code")
    book["cells"].append(code | {"id": "version", "source": [
        "import ipykernel\n", "print('kernel', ipykernel.__version__)"]})
    (tmp_path / "workbench.ipynb").write_text(json.dumps(book))
    (tmp_path / "hostile.jsonl").write_text("".join(
        json.dumps({"prompt": TEXT.format(number), "completion": ANSWER.format(number)}) + "\n"
        for number in range(40)))
    yield tmp_path
    for folder in running_folders(tmp_path / "runs"):  # of a test that failed on the way
        stop_run(folder, patience=1)


def press(page, name: str) -> None:
    page.locator(".sftb").get_by_role("button", name=name, exact=True).click()


def open_step(page, step: str) -> None:
    page.locator(".sftb-steps button", has_text=step).click()
    page.locator(".sftb-steps button.sftb-chosen", has_text=step).wait_for()


def toggle_fold(page, title: str) -> None:
    page.locator("button.sftb-fold", has_text=title).click()


def fill_in(page, name: str, value: str) -> None:
    control = page.locator(".sftb").get_by_label(name, exact=True)
    control.fill(value)
    control.press("Tab")


def wait_for_status(page, words: str, timeout: float = PATIENCE) -> None:
    """Wait until the status line has these words."""
    page.locator(".sftb-message", has_text=words).wait_for(timeout=timeout)


def steps_done(page) -> int:
    """Steps of all stages so far, by the words beside the bars."""
    return sum(int(number.replace(",", "")) for number in
               re.findall(r"([\d,]+) of [\d,]+ steps", page.locator(".sftb-bars").inner_text()))


def reach_all_by_tab(page) -> None:
    """Press Tab through the step: every enabled control gets the focus once, and each has a name."""
    page.evaluate("""() => {
        const all = document.querySelectorAll('.sftb button, .sftb input, .sftb select, .sftb textarea');
        window.wanted = [...all].filter(one => one.offsetParent && !one.disabled);
        window.wanted[0].focus();
        window.reached = new Set([document.activeElement]);
    }""")
    for _ in range(page.evaluate("window.wanted.length + 3")):
        page.keyboard.press("Tab")
        page.evaluate("window.reached.add(document.activeElement)")
    missed, nameless = page.evaluate("""() => {
        const name = one => [...(one.labels ?? [])].map(label => label.textContent).join('').trim()
            || one.textContent.trim();
        return [window.wanted.filter(one => !window.reached.has(one)).map(name),
                window.wanted.filter(one => !name(one)).map(one => one.outerHTML)];
    }""")
    assert missed == [] and nameless == []


def nothing_is_cut_off(page) -> None:
    """At full and at half width no part of the form reaches over its edge."""
    for width in (640, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(400)
        over = page.evaluate("""() => {
            const form = document.querySelector('.sftb').getBoundingClientRect();
            return [...document.querySelectorAll('.sftb *')].filter(one => one.offsetParent
                && !one.closest('.sftb-pre') && one.getBoundingClientRect().width > 1
                && one.getBoundingClientRect().right > form.right + 1)
                .map(one => one.outerHTML.slice(0, 200));
        }""")
        assert over == [], width


def choose(page) -> None:
    """Mode 4 with LoRA, short."""
    page.locator(".sftb-modes button", has_text="4").click()
    page.locator(".sftb-pair button", has_text="lora").first.click()
    toggle_fold(page, "Values")
    fill_in(page, "max_steps", "150")
    fill_in(page, "probe_rows", "16")


def correct(page) -> None:
    """A rate far off is marked, and taken back; the open step serves keyboards and narrow pages."""
    fill_in(page, "learning_rate", "0.5")
    page.get_by_text(re.compile("! learning_rate 0.5 is .* times above")).first.wait_for()
    fill_in(page, "learning_rate", "")
    reach_all_by_tab(page)
    nothing_is_cut_off(page)
    toggle_fold(page, "Values")
    open_step(page, "2 Look")
    wait_for_status(page, "Looked at the data")


@contextlib.contextmanager
def paused_run(folder: Path):
    """The run is paused meanwhile, so that it cannot end before the test looks."""
    (run,) = running_folders(folder / "runs")
    pid = json.loads((run / "worker.json").read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def train(page, address: str, folder: Path) -> None:
    """Start, see the curve grow, stop, resume; a new page and kernel in mid-run; attach."""
    open_step(page, "3 Train")
    press(page, "Start")
    image = page.locator(".sftb img:visible")
    image.wait_for(timeout=PATIENCE)
    first, done = image.get_attribute("src"), steps_done(page)
    page.wait_for_function("old => document.querySelector('.sftb img').src != old", arg=first,
                           timeout=PATIENCE)
    until = time.monotonic() + PATIENCE / 1000
    while steps_done(page) <= done and time.monotonic() < until:  # scores before the first step change it too
        page.wait_for_timeout(100)
    press(page, "Stop")
    wait_for_status(page, "has stopped")
    stopped = steps_done(page)
    assert stopped > done
    press(page, "Resume")
    page.get_by_text(": training").wait_for(timeout=PATIENCE)
    with paused_run(folder):
        page.goto(address)
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=PATIENCE)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=PATIENCE)
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        page.get_by_text("Restart Kernel and Run All Cells…", exact=True).click()
        page.get_by_role("button", name="Confirm Kernel Restart").click()
        wait_for_status(page, "is running")
    page.locator(".sftb img:visible").wait_for(timeout=PATIENCE)
    assert steps_done(page) >= stopped - 1


def see_it_end(page) -> None:
    """The run that is followed ends with its ledger."""
    nothing_is_cut_off(page)
    wait_for_status(page, "is done", 5 * MINUTE)
    assert "mixed_sft" in page.locator(".sftb-pre:visible").last.inner_text()


def train_on_hostile_text(page, folder: Path) -> None:
    """A second run, of mode 1, whose rows and name would run code if they were taken for more than text."""
    open_step(page, "1 Choose")
    assert page.locator(".sftb-modes button.sftb-chosen").inner_text().endswith("4"), "the run shown is of 4"
    page.locator(".sftb-modes button", has_text="1").click()
    page.locator(".sftb-pair button", has_text="full").first.click()
    toggle_fold(page, "Model and data")
    fill_in(page, "domain_tasks", str(folder / "hostile.jsonl"))
    toggle_fold(page, "Values")
    fill_in(page, "max_steps", "4")
    fill_in(page, "output_dir", str(folder / "runs" / NAME))
    open_step(page, "2 Look")
    wait_for_status(page, "Looked at the data")
    shown = "".join(page.locator(".sftb-tokens:visible").all_inner_texts())
    assert "costs $5 and $6" in re.sub(r"\s+", " ", re.sub("[|«»]", "", shown))  # no mathematics
    reach_all_by_tab(page)
    nothing_is_cut_off(page)
    open_step(page, "3 Train")
    press(page, "Start")
    wait_for_status(page, "is done")
    assert NAME in page.locator(".sftb-page:visible").inner_text()


def compare(page) -> None:
    """Both runs in the table, in one plot, and what their recipes differ in."""
    open_step(page, "4 Compare")
    marks = page.locator(".sftb-runs input")
    marks.nth(1).wait_for()
    for number in range(2):
        marks.nth(number).check()
    page.locator(".sftb img:visible").first.wait_for()
    differ = re.compile(r"method\s+(full\s+lora|lora\s+full)\s")
    page.locator(".sftb-pre:visible", has_text=differ).wait_for()
    reach_all_by_tab(page)
    nothing_is_cut_off(page)


def talk(page) -> None:
    """The first questions to three checkpoints."""
    open_step(page, "5 Talk")
    names = page.get_by_label("checkpoints", exact=True)
    names.select_option(index=[0, 1, 2])
    press(page, "Ask")
    page.locator(".sftb-answers").first.wait_for(timeout=PATIENCE)
    assert page.locator(".sftb-answers").first.locator(".sftb-pre").count() == 3
    reach_all_by_tab(page)
    nothing_is_cut_off(page)


@pytest.mark.browser
@pytest.mark.timeout(1200)
def test_the_whole_way(kernel, notebook):
    version, environment = kernel
    with lab.server(notebook, **environment) as address, lab.page() as page:
        page.on("dialog", lambda dialog: dialog.accept())
        lab.run_all(page, address("workbench.ipynb"))
        page.locator(".sftb-modes button").first.wait_for(timeout=PATIENCE)
        complete = version == list(KERNELS)[-1]  # the versions differ in when a callback runs, no more
        choose(page)
        if complete:
            correct(page)
        train(page, address("workbench.ipynb"), notebook)
        assert f"kernel {version}" in page.locator(".jp-Notebook").inner_text()
        if not complete:
            press(page, "Stop")
            wait_for_status(page, "has stopped")
        else:
            see_it_end(page)
            train_on_hostile_text(page, notebook)
            compare(page)
            talk(page)
        assert page.evaluate("window.fired") is None
    results = [json.loads(path.read_text()) for path in (notebook / "runs").glob("*/result.json")]
    assert sorted(result["recipe"]["mode"] for result in results) == (["1", "4"] if complete else ["4"])
    assert all(result["complete"] == complete for result in results)
