"""README and the pages of docs/ are true: commands run, links resolve, modules and fields are named."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from sftbench.cli import main
from sftbench.commands import commands as group
from sftbench.data import conversations, fields
from sftbench.recipes.modes import MODES
from sftbench.sources.names import SHAPES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sftbench"
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
SHORT = ["-p", "max_steps", "2", "-p", "probe_rows", "4"]
# No hub in the tests: models made from configurations stand in, and the example's files for yours.
STAND_INS = {"text.jsonl": "docs_data/domain_text.jsonl", "tasks.jsonl": "docs_data/domain_tasks.jsonl"}


def commands(page: str) -> list[str]:
    """The commands of a page's shell blocks, without their comments."""
    return [line.split("  #")[0].strip() for block in re.findall(r"```sh\n(.*?)```", PAGES[page], re.S)
            for line in block.strip().splitlines()]


def test_readme_and_data_have_two_screens_and_the_other_pages_one_each():
    long = ("README.md", "data.md")  # two screens
    assert all(len(text.splitlines()) <= (160 if page in long else 120) for page, text in PAGES.items())
    assert set(PAGES) - {"README.md"} == {
        f"{name}.md" for name in ("data", "models", "runs", "methods", "scale", "performance", "for_agents",
                                  "advice", "real_model")}


def test_every_command_is_of_a_kind_that_is_run_here():
    kinds = {page: {command.split()[0] for command in commands(page)} for page in PAGES}
    assert kinds["README.md"] == {"make", "sftbench", "python"}
    assert set.union(*kinds.values()) == kinds["README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_a_command_within_a_sentence_has_a_name_and_options_that_there_are(page):
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.S)
    for command in re.findall(r"`(?:[^`]* -m )?sftbench ([a-z][^`]*)`", text):
        name, *words = command.split()
        options = {option.split("=")[0].strip("[]") for option in words if option.startswith(("-", "[-"))}
        parameters = group.commands[name].get_params(click.Context(group.commands[name]))
        assert options <= {option for parameter in parameters for option in parameter.opts}, command


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


def test_the_upload_is_as_the_installed_hf_takes_it():
    repository, folder, *options = re.search(r"^hf upload (.*?)  ", PAGES["models.md"], re.M)[1].split()
    usage = subprocess.run([Path(sys.executable).with_name("hf"), "upload", "--help"], capture_output=True,
                           text=True, check=True).stdout
    assert "upload [OPTIONS] REPO_ID [LOCAL_PATH]" in usage
    assert (repository, folder) == ("OWNER/NAME", "exported") and all(option in usage for option in options)


@pytest.mark.parametrize("command", sorted(
    {one for page in PAGES for one in commands(page) if one.startswith("make")}))
def test_the_make_commands_are_targets(command):
    target = command.split()[1]
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert {"demo": "notebook 2 --out runs/demo", "test": "pytest",
            "real": "notebook notebooks/real_model.ipynb --out runs/real"}[target] in done.stdout


def test_readme_names_every_package_and_module_and_no_other():
    charters = README.split("## Where to find what in the code")[1]
    listed = {name: set(re.findall(r"`(\w+)`", text)) for name, text in
              re.findall(r"^- \*\*`(\w+)/`\*\* (.*?)(?=\n-|\n\n)", charters, re.M | re.S)}
    assert set(listed) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    everywhere = {path.stem for path in PACKAGE.rglob("*.py")} | set(listed)
    for package, named in listed.items():
        modules = {path.stem for path in (PACKAGE / package).glob("*.py")} - {"__init__"}
        assert modules <= named, f"README's charter of {package} does not name {modules - named}"
        assert {name for name in named if name.islower()} <= everywhere
    above = {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
    assert above <= set(re.findall(r"`(\w+)`", charters))


def test_the_table_has_every_mode():
    for number in MODES:
        assert re.search(rf"^\| {number} \| .* \| [01]\.\d\d", README, re.M)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there_and_pictures_small(page):
    folder = ROOT if page == "README.md" else ROOT / "docs"
    assert "](#" not in PAGES[page] and ".md#" not in PAGES[page], "links lead to pages"
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if "://" not in link]
    for link in links:
        assert (folder / link).exists(), link
        assert not link.endswith(".png") or (folder / link).stat().st_size < 250_000


def test_every_page_is_linked_from_readme():
    assert all(f"(docs/{page})" in README for page in PAGES if page != "README.md")


def test_what_a_page_names_in_the_tree_is_there():
    named = {name for text in PAGES.values()
             for name in re.findall(r"(?:benchmarks|notebooks|tests)/\w+\.\w+", text)}
    assert len(named) > 5 and all((ROOT / name).exists() for name in named)


def strings(value) -> set[str]:
    """All texts in a constant: of a dict its keys, and those of its values."""
    if isinstance(value, str):
        return {value}
    values = [*value, *value.values()] if isinstance(value, dict) else value
    return set().union(*map(strings, values)) if isinstance(value, (dict, tuple, list, frozenset)) else set()


# no names of fields: words of verdicts, empty values, the order of messages, what an error says, scorers
NO_FIELDS = ("YES", "NO", "EMPTY", "STEPS", "WANTED", "SCORERS")


@pytest.mark.parametrize("module", [conversations, fields])
def test_the_table_of_fields_has_every_name_that_the_code_knows(module):
    table = PAGES["data.md"].split("## What is used of a row")[1].split("\n## ")[0]
    named = set(re.findall(r"`([^`]+)`", table)) | {"system", "user", "assistant", "tool", *SHAPES}
    constants = {name: value for name, value in vars(module).items() if name.isupper()}
    assert len(constants) > 5
    for name in constants.keys() - {*NO_FIELDS}:
        lacking = strings(constants[name]) - named
        assert not lacking, f"docs/data.md says nothing of {name}: {lacking}"


@pytest.mark.slow
def test_the_page_for_programs_names_every_field(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = ["run", "2", "-p", "method", "qlora", "-p", "cpt_method", "lora", "--out", "runs/one", *SHORT]
    assert main(run) == 0
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGES["for_agents.md"], re.M | re.S))

    def names(section: str) -> set[str]:
        return set(re.findall(r"`([\w.]+)`", sections[section]))

    result = json.loads(Path("runs/one/result.json").read_text())
    fields = names("`result.json`, schema 1")
    for entry in (result, result["start"], *result["stages"]):
        assert set(entry) <= fields
    for entry in result["stages"]:
        assert all(set(figures) <= fields for kind in ("data", "probes") for figures in entry[kind].values())
    recipe = json.loads(Path("runs/one/recipe.json").read_text())
    assert set(recipe).union(*recipe["data"].values()) <= names("A run's folder")
    assert {path.name for path in Path("runs/one").iterdir()} <= names("A run's folder")
    events = [json.loads(line) for line in Path("runs/one/events.jsonl").read_text().splitlines()]
    seen = {name for event in events for name in event if not name.startswith("eval_")}
    assert seen <= names("`events.jsonl`")
    assert main(["pocket", "write", "data"]) == 0
    for command in (["check", "data/domain_tasks.jsonl"], ["show", "runs/one"], ["compare", "runs/one"],
                    ["advise", "--quick"], ["forecast", "2", "--quick"],
                    ["talk", "runs/one", "--prompt", "?"]):
        capsys.readouterr()
        assert main([*command, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert set(shown[0] if command[0] == "talk" else shown) <= names("JSON")
        assert command[0] != "check" or set(shown["counts"]) <= names("JSON")
