"""A recipe written as a command or as a parameters cell, and read back from a run, a notebook or a file.

Only what differs from a new recipe is written, so advised values stay advised; mode and method always are.
"""

import ast
import json
import shlex
from pathlib import Path

from ..errors import file_error
from ..runs.folder import read_json
from .recipe import FIELDS, Recipe, field_help, field_type, format_argument, from_parameters, override


def _changed_values(recipe: Recipe) -> dict:
    """Mode, method and every field that differs from a new recipe."""
    return {name: getattr(recipe, name) for name, field in FIELDS.items()
            if name in ("mode", "method") or getattr(recipe, name) != field.default}


def format_command(recipe: Recipe) -> str:
    """The shell command that runs exactly this recipe."""
    values = _changed_values(recipe)
    words = ["sftbench", "run", values.pop("mode")]
    for name, value in values.items():
        words += ["-p", name, format_argument(value)]
    return shlex.join(words)


def format_cell(recipe: Recipe) -> str:
    """The source of a notebook's parameters cell that gives exactly this recipe."""
    return "\n".join(f"{name}: {field_type(name).__name__} = {_format_literal(value)}  # {field_help(name)}"
                     for name, value in _changed_values(recipe).items())


def format_run_cell(recipe: Recipe) -> str:
    """The source of a cell that runs exactly this recipe in the notebook's own kernel, with its curve."""
    values = ",\n    ".join(f"{name}={_format_literal(value)}"
                            for name, value in _changed_values(recipe).items())
    return ("import sftbench\n\n"
            f"recipe = sftbench.override(\n    sftbench.Recipe(),\n    {values})\n"
            "run = sftbench.run(recipe, callbacks=[sftbench.LivePlot()])\n"
            "print(sftbench.ledger(run))")


def _format_literal(value) -> str:
    """A value as Python source, text in double quotes as in the notebooks."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def parse_cell(source: str, where: str = "the cell") -> Recipe:
    """The recipe that a parameters cell gives; its values are read, nothing is executed. Raises BadInput."""
    values = {}
    try:
        for node in ast.parse(source).body:
            match node:
                case (ast.Assign(targets=[ast.Name(name), *_], value=value)
                      | ast.AnnAssign(target=ast.Name(name), value=ast.expr() as value)):
                    values[name] = ast.literal_eval(value)
    except (SyntaxError, ValueError) as error:
        raise file_error(where, f"not lines of the form name = value: {error}") from None
    return from_parameters(values)


def read_recipe(path: str | Path) -> Recipe:
    """The recipe of a run's folder, a `recipe.json`, or a notebook's parameters cell; raises BadInput.

    Values that were advised in that run are advised anew, and its folder is not taken over.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "recipe.json"
    if not path.is_file() or path.suffix not in (".json", ".ipynb"):
        problem = "contains no recipe" if path.is_file() else "no such file"
        raise file_error(path, f"{problem}; give a run's folder, a recipe.json or a notebook")
    if path.suffix == ".ipynb":
        return _read_notebook(path)
    stored = read_json(path.parent, path.name)
    if not isinstance(stored.get("recipe"), dict):
        raise file_error(path, "contains no recipe")
    advised = [name for name in stored.get("reasons") or {} if name in FIELDS]
    return override(Recipe(), **stored["recipe"] | dict.fromkeys([*advised, "output_dir"]))


def _read_notebook(path: Path) -> Recipe:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells
                   if {"parameters", "injected-parameters"} & set(cell.get("metadata", {}).get("tags", []))]
    except (ValueError, KeyError, TypeError) as error:
        raise file_error(path, f"not a notebook: {error}") from None
    if not sources:
        raise file_error(path, "no cell is tagged parameters")
    return parse_cell("\n".join(sources), str(path))  # papermill's injected cell comes later and wins
