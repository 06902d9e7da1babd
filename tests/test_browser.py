"""The set-up of the browser tests, on paths without a browser: what is taken, installed, and reported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BROWSER = "#!/bin/sh\n"
FAKE_PLAYWRIGHT = {  # as much of playwright as is asked; its browser lies where FAKE_BROWSER says
    "__init__.py": "", "__main__.py": "import os, sys; sys.exit(os.environ['FAKE_INSTALL'] != 'works' or "
                                      "open(os.environ['FAKE_BROWSER'], 'w').write('x') != 1)",
    "sync_api.py": """
import contextlib, os, types

@contextlib.contextmanager
def sync_playwright():
    yield types.SimpleNamespace(chromium=types.SimpleNamespace(executable_path=os.environ["FAKE_BROWSER"]))
"""}


@pytest.fixture
def machine(tmp_path):
    """A machine with nothing on its PATH but what a test puts there; returns a function that sets up."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "lib" / "playwright"
    fake.mkdir(parents=True)
    for name, text in FAKE_PLAYWRIGHT.items():
        (fake / name).write_text(text)

    def set_up(install: str = "fails", **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "tests" / "browser.py")], capture_output=True, text=True, timeout=60,
            env={"PATH": str(tmp_path / "bin"), "PYTHONPATH": str(tmp_path / "lib"), "FAKE_INSTALL": install,
                 "FAKE_BROWSER": str(tmp_path / "own"), **environment})
    set_up.bin = tmp_path / "bin"
    return set_up


def put(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(script)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", ["chromium", "google-chrome"])
def test_a_browser_on_the_path_is_taken(machine, name):
    put(machine.bin, name, BROWSER)
    done = machine()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_named_browser_is_taken_and_a_wrong_name_is_refused(machine, tmp_path):
    path = put(tmp_path, "mine", BROWSER)
    assert machine(CHROMIUM=str(path)).returncode == 0
    done = machine(CHROMIUM="/nowhere/chromium")
    assert done.returncode == 1 and "/nowhere/chromium" in done.stderr and done.stdout == ""


def test_playwrights_own_browser_is_taken(machine, tmp_path):
    (tmp_path / "own").write_text("x")
    assert machine().returncode == 0


def test_apt_installs_one_with_one_line_of_progress(machine):
    os.symlink("/usr/bin/env", machine.bin / "env")
    put(machine.bin, "sudo", '#!/bin/sh\n[ "$1" = -n ] && shift\nexec "$@"\n')
    put(machine.bin, "apt-get",
        f'#!/bin/sh\n[ "$1" = update ] || {{ /bin/cp "$0" {machine.bin}/chromium; }}\n')
    done = machine()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Installing Chromium for the browser tests: once.\n"


def test_playwright_installs_one_where_apt_cannot(machine):
    put(machine.bin, "apt-get", "#!/bin/sh\nexit 100\n")
    assert machine(install="works").returncode == 0


def test_without_any_way_one_sentence_says_so_and_no_test_runs(machine):
    done = machine()
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "CHROMIUM=" in done.stderr
    dry = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line for line in dry.splitlines() if "tests/browser.py" in line or "-m pytest" in line]
    assert "browser.py" in lines[0] and "pytest" in lines[1]  # make stops at the first line that fails
