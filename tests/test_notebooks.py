"""The seven notebooks: one skeleton, one code, true parameters, commands that parse, and runs that finish."""

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from transformers import AutoModelForCausalLM

import sftbench
from sftbench.cli import main, parse_command
from sftbench.notebook import execute_notebook, find_notebook
from sftbench.pocket.world import write_files
from sftbench.recipes.modes import MODES, load_mode
from sftbench.recipes.recipe import FIELDS, ROLES, field_help, field_type, from_parameters

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = {number: FOLDER / f"mode_{number}_{mode.name}.ipynb" for number, mode in MODES.items()}
HEADINGS = ["Parameters", "Recipe", "Look at the data and the mask", "Ask the start model", "Train",
            "Ledger and curve", "Ask again", "Save and reload", "Try next"]
COMMAND = re.compile(r"`\s*(sftbench [^`]+)`")
each_notebook = pytest.mark.parametrize("number", PATHS)


def read(number: str):
    return nbformat.read(PATHS[number], as_version=4)


def code(book) -> dict[str, str]:
    return {cell.id: cell.source for cell in book.cells if cell.cell_type == "code"}


def prose(book) -> str:
    return "\n\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")


def commands(text: str) -> list[str]:
    """The `sftbench …` commands of a text, each on one line."""
    return [" ".join(command.replace("\\\n", " ").split()) for command in COMMAND.findall(text)]


def test_there_is_one_notebook_for_each_mode_and_the_wrapper_finds_it():
    assert sorted(FOLDER.glob("mode_*.ipynb")) == sorted(PATHS.values())
    for number, path in PATHS.items():
        assert find_notebook(number) == path.resolve()


@each_notebook
def test_code_is_the_same_in_all_but_for_the_mode(number):
    first, other = code(read("1")), code(read(number))
    assert list(first) == list(other)
    for name, source in first.items():
        assert other[name] == (source.replace('mode: str = "1"', f'mode: str = "{number}"')
                               if name == "parameters" else source)


@each_notebook
def test_the_parameters_cell_says_what_the_recipe_says(number):
    book = read(number)
    (cell,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    assert 14 <= len(cell.source.splitlines()) <= 20
    for line in cell.source.splitlines():
        name, kind, value, help = re.fullmatch(r"(\w+): (\w+) = (.+?)  # (.+)", line).groups()
        assert (kind, help) == (field_type(name).__name__, field_help(name))
        assert ast.literal_eval(value) == (number if name == "mode" else FIELDS[name].default)


@each_notebook
def test_papermill_reads_names_defaults_and_help(number):
    found = papermill.inspect_notebook(PATHS[number])
    assert list(found) == [line.split(":")[0] for line in code(read(number))["parameters"].splitlines()]
    assert {name: entry["help"] for name, entry in found.items()} == {
        name: field_help(name) for name in found
    }
    values = {name: ast.literal_eval(entry["default"]) for name, entry in found.items()}
    assert from_parameters(values) == sftbench.override(sftbench.Recipe(), mode=number)


@each_notebook
def test_skeleton(number):
    book = read(number)
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor, book.metadata.kernelspec.name) == (4, 5, "python3")
    assert 15 <= len(book.cells) <= 25
    assert [cell.id for cell in book.cells] == [cell.id for cell in read("1").cells]
    assert re.findall(r"^## (.+)$", prose(book), re.MULTILINE) == HEADINGS
    assert re.findall(r"^# (.+)$", prose(book), re.MULTILINE)[0].startswith(f"Mode {number}: ")
    kinds = [cell.cell_type for cell in book.cells]
    assert kinds[0] == "markdown" and ("code", "code") not in zip(kinds, kinds[1:], strict=False)
    assert len(re.findall(r"^\d\. \*\*", book.cells[-1].source, re.MULTILINE)) == 3


@each_notebook
def test_cells_are_short_plain_and_without_outputs(number):
    for cell in read(number).cells:
        assert re.fullmatch(r"[a-z-]+", cell.id)
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
        if cell.cell_type == "code" and cell.id != "parameters":
            assert not re.search(r"\b(def|class|lambda|input)\b", cell.source)
            assert len(cell.source.splitlines()) <= 15


@each_notebook
def test_prose_is_of_this_mode_and_its_drawing_is_true(number):
    mine, others = read(number), [read(other) for other in PATHS if other != number]
    for cell in mine.cells:
        if cell.cell_type == "markdown":
            assert all(cell.source not in [twin.source for twin in book.cells] for book in others), cell.id
    (drawing,) = re.findall(r"```\n(┌.*?)\n```", prose(mine), re.DOTALL)
    mode = load_mode(number)
    assert re.findall(r"\b(CPT|SFT)\b", drawing) == [stage.kind.upper() for stage in mode.stages]
    assert f"{mode.start} model" in drawing
    shares = re.findall(r"(domain|general) (text|tasks)(?: +(\d+) %)?", drawing)
    drawn = {(f"{side}_{kind}", int(share or 100)) for side, kind, share in shares}
    assert drawn == {(role, round(share * 100)) for stage in mode.stages
                     for role, share in stage.shares.items()}
    assert len(re.findall(r"\bR\d+\b", prose(mine))) >= 4


@each_notebook
def test_commands_in_the_prose_parse_and_name_recipe_fields(number):
    found = commands(prose(read(number)))
    assert len(found) >= 3
    for command in found:
        words = shlex.split(command)[1:]
        if "--help" in words:
            assert main(words) == 0
            continue
        _, options = parse_command(words)
        recipe = options.get("recipe") or sftbench.override(sftbench.Recipe(), **options.get("values", {}))
        load_mode(recipe.mode)


@each_notebook
def test_values_named_in_the_exercises_are_valid(number):
    found = re.findall(r"`(\w+) = ([^`]+)`", prose(read(number)))
    assert found
    for name, value in found:
        sftbench.override(sftbench.Recipe(), **{name: ast.literal_eval(value)})


def test_python_lines_in_the_prose_run_and_make_the_files_that_are_named(tmp_path):
    found = re.findall(r"`python (-c \"[^`]+)`", "\n".join(prose(read(number)) for number in PATHS))
    assert found
    for line in found:
        words = shlex.split(" ".join(line.split()))
        subprocess.run([sys.executable, *words], cwd=tmp_path, check=True, timeout=120)
    named = re.findall(r"-p \w+ (desk/\S+\.jsonl)", "\n".join(commands(prose(read("3")))))
    assert len(named) == 4 and all((tmp_path / name).is_file() for name in named)


def test_a_cell_can_be_run_twice():
    """A module of the name of a public function would stand in its place from the second use on."""
    for home in set(sftbench._PUBLIC.values()):
        importlib.import_module(f"sftbench.{home.split(':')[0]}")
    for name in set(re.findall(r"sftbench\.(\w+)", "\n".join(code(read("1")).values()))):
        assert callable(getattr(sftbench, name)) and callable(getattr(sftbench, name)), name


def test_the_mode_of_ones_own_puts_text_into_sft():
    mode = load_mode(str(FOLDER / "own_mode.toml"))
    cpt, sft = mode.stages
    assert mode.start == "base"
    assert (cpt.kind, cpt.shares) == ("cpt", {"domain_text": 1.0})
    assert (sft.kind, sft.shares) == (
        "sft", {"domain_tasks": 0.25, "general_tasks": 0.5, "general_text": 0.25})
    assert mode.name not in [entry.name for entry in MODES.values()]


def test_mode_5_names_the_mode_of_ones_own():
    assert "sftbench run notebooks/own_mode.toml" in commands(prose(read("5")))


def run_and_check(number: str, out: Path, **values) -> dict:
    """Execute a notebook and check what it leaves behind; returns its result."""
    executed = execute_notebook(PATHS[number], values, out, timeout=500)
    assert executed.stat().st_size < 2_000_000
    cells = nbformat.read(executed, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" in kinds and not any("widget" in kind or "javascript" in kind for kind in kinds)
    assert not [given for given in outputs if given.output_type == "error" or given.get("name") == "stderr"]
    assert (out / "model" / "model.safetensors").exists() and (out / "loss.png").exists()
    result = json.loads((out / "result.json").read_text())
    assert result["complete"] is True
    stages = MODES[number].stages
    assert [stage["name"] for stage in result["stages"]] == [stage.name for stage in stages]
    assert set(result["stages"][-1]["probes"]) == set(ROLES)
    return result


@pytest.mark.slow
def test_your_own_walks_from_files_to_an_export(tmp_path, monkeypatch):
    """With few steps, in a folder of its own: it makes its files, model and export there."""
    monkeypatch.chdir(tmp_path)
    short = {"max_steps": 2, "probe_rows": 4, "yardstick": False, "max_new_tokens": 4}
    executed = execute_notebook(FOLDER / "your_own.ipynb", short, tmp_path / "runs" / "one", timeout=300)
    cells = nbformat.read(executed, as_version=4).cells
    outputs = {cell.id: cell.outputs for cell in cells if cell.cell_type == "code"}
    given = [output for found in outputs.values() for output in found]
    assert not [output for output in given if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [kind for output in given for kind in output.get("data", {}) if "widget" in kind]
    said = {name: "".join(output.get("text", "") for output in found) for name, found in outputs.items()}
    assert "by shape: qa" in said["check"] and "split off by hash" in said["check"]
    assert "sftbench's default" in said["recipe"] and "Memory: fits" in said["recipe"]
    assert "trained in 2 turns" in said["more"] and said["more"].count("tokens,") == 2
    assert "3 of 3 answers as the run's model gave them" in said["export"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "one" / "exported")
    assert 19e6 < model.num_parameters() < 100e6
    assert (tmp_path / "runs" / "one" / "exported" / "README.md").exists()


@pytest.mark.parametrize("name", ["your_own", "real_model"])
def test_the_notebooks_beside_the_modes_are_laid_out_as_these(name):
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    kinds = [cell.cell_type for cell in book.cells]
    assert 15 <= len(book.cells) <= 25 and ("code", "code") not in zip(kinds, kinds[1:], strict=False)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            assert cell.id == "parameters" or len(cell.source.splitlines()) <= 15
            assert not re.search(r"\b(def|class|lambda|input)\b", cell.source)
    for line in code(book)["parameters"].splitlines():
        name, kind, _, help = re.fullmatch(r"(\w+): (\w+) = (.+?)  # (.+)", line).groups()
        assert (kind, help) == (field_type(name).__name__, field_help(name))
    for command in commands(prose(book)):
        assert parse_command(shlex.split(command.replace("FILE", "a.jsonl"))[1:])[0] in command
    for field, value in re.findall(r"`(\w+) = ([^`]+)`", prose(book)):
        sftbench.override(sftbench.Recipe(), **{field: ast.literal_eval(value)})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_real_model_reads_and_is_compared_with_one_that_did_not(tmp_path):
    """With few steps, on few fields: what it teaches takes a quarter of an hour."""
    assert main(["fetch", "smollm2"]) == 0
    short = {"max_steps": 2, "probe_rows": 6, "library_fields": 30}
    executed = execute_notebook(FOLDER / "real_model.ipynb", short, tmp_path / "one", timeout=1200)
    cells = nbformat.read(executed, as_version=4).cells
    said = {cell.id: "".join(output.get("text", "") for output in cell.outputs)
            for cell in cells if cell.cell_type == "code"}
    assert not [output for cell in cells if cell.cell_type == "code" for output in cell.outputs
                if output.output_type == "error" or output.get("name") == "stderr"]
    assert said["ledger"].count("prompt alone") == 2 and "yardstick" in said["ledger"]
    assert said["rows"].startswith("accuracy of domain tasks, 6 rows: ")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "one-mode_6")]
    assert [[stage["name"] for stage in result["stages"]] for result in results] == [
        ["cpt", "domain_sft"], ["domain_sft"]]
    assert results[0]["start"]["probes"] == results[1]["start"]["probes"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """One folder for the short runs, so that equal stages are trained once."""
    return tmp_path_factory.mktemp("notebooks")


@each_notebook
def test_the_parameters_of_every_notebook_can_be_prepared(number):
    """The code of all seven is the same, so two are run; the others' parameters lead to a prepared run."""
    namespace: dict = {}
    exec(code(read(number))["parameters"], namespace)
    ready = sftbench.prepare(sftbench.override(sftbench.from_parameters(namespace), max_steps=4))
    assert list(ready.plan.values()) == [4] * len(MODES[number].stages)


@pytest.mark.slow
@pytest.mark.parametrize("number", ["5", "7"])
def test_runs_through_papermill(number, shelf):
    result = run_and_check(number, shelf / f"mode_{number}", max_steps=4, probe_rows=16)
    assert all(stage["steps"] == 4 for stage in result["stages"])


@pytest.mark.slow
def test_the_exercises_are_never_refused(shelf, monkeypatch):
    """Every `sftbench run` of the prose is ready to train, from a folder that lies as the prose says."""
    monkeypatch.chdir(shelf)
    write_files("desk", related=False)
    shutil.copytree(FOLDER, shelf / "notebooks", dirs_exist_ok=True)
    found = {command for number in PATHS for command in commands(prose(read(number)))
             if command.startswith("sftbench run") and "--help" not in command}
    assert len(found) >= 15
    for command in sorted(found):
        _, options = parse_command(shlex.split(command)[1:])
        ready = sftbench.prepare(options["recipe"])
        forecast = sftbench.forecast(ready, timed=False)
        assert forecast["fits"] == "fits" and all(steps > 0 for steps in forecast["steps"].values()), command


@pytest.mark.slow
def test_mode_2_learns_with_its_defaults(tmp_path):
    result = run_and_check("2", tmp_path / "run")
    before, after = result["start"]["probes"], result["stages"][-1]["probes"]
    assert after["domain_tasks"]["accuracy"] > before["domain_tasks"]["accuracy"] + 0.3
    assert after["domain_text"]["loss"] < before["domain_text"]["loss"] - 1
