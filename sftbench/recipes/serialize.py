"""A recipe written as a command or as a parameters cell, and read back from a run, a notebook or a file.

Only what differs from a new recipe is written, so advised values stay advised; mode and method always are.
"""

import ast
import json
import shlex
from pathlib import Path

from ..errors import BadInput
from ..runs.folder import read_json
from .recipe import (
    FIELDS,
    Recipe,
    field_help,
    field_type,
    from_parameters,
    override,
    recipe_from_dict,
    recipe_to_dict,
)


def _changed_values(recipe: Recipe) -> dict:
    """Mode, method and every field that differs from a new recipe."""
    defaults = recipe_to_dict(Recipe())
    return {name: value for name, value in recipe_to_dict(recipe).items()
            if name in ("mode", "method") or value != defaults[name]}


def format_command(recipe: Recipe) -> str:
    """The shell command that runs exactly this recipe."""
    values = _changed_values(recipe)
    words = ["sftbench", "run", values.pop("mode")]
    for name, value in values.items():
        words += ["-p", name, str(value).lower() if value is None or isinstance(value, bool) else str(value)]
    return shlex.join(words)


def format_cell(recipe: Recipe) -> str:
    """The source of a notebook's parameters cell that gives exactly this recipe."""
    return "\n".join(f"{name}: {field_type(name).__name__} = {_python_literal(value)}  # {field_help(name)}"
                     for name, value in _changed_values(recipe).items())


def _python_literal(value) -> str:
    """A scalar as Python source; text in double quotes, as in the notebooks."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def parse_cell(source: str, where: str = "the cell") -> Recipe:
    """The recipe that a parameters cell gives; its values are read, nothing is executed. Raises BadInput."""
    values = {}
    try:
        for node in ast.parse(source).body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                if isinstance(target, ast.Name):
                    values[target.id] = ast.literal_eval(node.value)
    except (SyntaxError, ValueError) as error:
        raise BadInput(f"{where}: not lines of the form name = value: {error}", where=where) from None
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
        raise BadInput(f"{path}: {problem}; give a run's folder, a recipe.json or a notebook",
                       where=str(path))
    if path.suffix == ".ipynb":
        return _read_notebook(path)
    stored = read_json(path.parent, path.name)
    if not isinstance(stored.get("recipe"), dict):
        raise BadInput(f"{path}: contains no recipe", where=str(path))
    advised = [name for name in stored.get("reasons") or {} if name in FIELDS]
    return override(recipe_from_dict(stored["recipe"]), **dict.fromkeys(advised), output_dir=None)


def _read_notebook(path: Path) -> Recipe:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells
                   if {"parameters", "injected-parameters"} & set(cell.get("metadata", {}).get("tags", []))]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: not a notebook: {error}", where=str(path)) from None
    if not sources:
        raise BadInput(f"{path}: no cell is tagged parameters", where=str(path))
    return parse_cell("\n".join(sources), str(path))  # papermill's injected cell comes later and wins
