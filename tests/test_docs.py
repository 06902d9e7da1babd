"""README and the pages of docs/ are true: commands run, links and pictures are there, packages are named."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sftbench.cli import main
from sftbench.recipes.modes import MODES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
SHORT = ["-p", "max_steps", "2", "-p", "probe_rows", "4"]
# No hub in the tests: models made from configurations stand in, and the example's files for yours.
STAND_INS = {"text.jsonl": "docs_data/domain_text.jsonl", "tasks.jsonl": "docs_data/domain_tasks.jsonl"}


def commands(page: str) -> list[str]:
    """The commands of a page's shell blocks, without their comments."""
    return [line.split("  #")[0].strip() for block in re.findall(r"```sh\n(.*?)```", PAGES[page], re.S)
            for line in block.strip().splitlines()]


def test_readme_has_two_screens_and_commands_of_every_kind():
    assert len(README.splitlines()) <= 160
    assert {command.split()[0] for command in commands("README.md")} == {"make", "sftbench", "python"}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_of_a_page_run_in_their_order(page, tmp_path, monkeypatch, make_model, capsys):
    monkeypatch.chdir(tmp_path)
    stand_ins = STAND_INS | {"Qwen/Qwen3-0.6B-Base": make_model(), "Qwen/Qwen3-0.6B": make_model("llama")}
    for command in commands(page):
        words = [stand_ins.get(word, word) for word in shlex.split(command)]
        if words[0] == "python":
            subprocess.run([sys.executable, str(ROOT / words[1]), *words[2:]], check=True)
        if words[0] == "sftbench":
            trains = words[1] in ("run", "notebook")
            assert main(words[1:] + (SHORT if trains else [])) == 0, (command, capsys.readouterr().err)


@pytest.mark.parametrize("command", [one for one in commands("README.md") if one.startswith("make")])
def test_the_make_commands_are_targets(command):
    target = command.split()[1]
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert {"demo": "notebook 2 --out runs/demo", "test": "pytest"}[target] in done.stdout


def test_readme_names_every_package_with_its_charter():
    packages = {path.parent.name for path in (ROOT / "sftbench").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/` \| \w", README, re.M)) - {"sftbench"} == packages


def test_the_table_has_every_mode():
    for number in MODES:
        assert re.search(rf"^\| {number} \| .* \| [01]\.\d\d", README, re.M)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there_and_pictures_small(page):
    folder = ROOT if page == "README.md" else ROOT / "docs"
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGES[page]) if "://" not in link]
    for link in links:
        assert (folder / link).exists(), link
        assert not link.endswith(".png") or (folder / link).stat().st_size < 250_000


def test_every_page_is_linked_from_readme():
    assert all(f"(docs/{page})" in README for page in PAGES if page != "README.md")


def test_what_a_page_names_in_the_tree_is_there():
    named = {name for text in PAGES.values()
             for name in re.findall(r"(?:benchmarks|notebooks|tests)/\w+\.\w+", text)}
    assert len(named) > 5 and all((ROOT / name).exists() for name in named)
