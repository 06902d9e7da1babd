"""What the commands share: their group, arguments and options, and JSON as their output."""

import json
import os
import sys
from pathlib import Path

import click

from .errors import BadInput
from .recipes.modes import load_mode
from .recipes.recipe import FIELDS, ROLES, Recipe, describe_field, field_type, override, parse_value
from .reports.progress import print_line
from .runs.folder import find_run, new_run_folder
from .sources.names import check_source, find_model_folder


@click.group(no_args_is_help=False,
             context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def commands() -> None:
    """Supervised fine-tuning in seven modes and five methods, on one bench."""


def print_json(data: dict | list) -> None:
    """Print data as JSON, as ASCII where output is not UTF-8: only paths become text, and NaN is refused."""
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    print_line(json.dumps(data, ensure_ascii=ascii_only, indent=1, default=os.fspath, allow_nan=False))


class ListCommand(click.Command):
    """A command whose options with `...` in their metavar take all words up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read `--tasks A B` as `--tasks A --tasks B`: click 8.5 has no option with any number of values."""
        lists = {name for option in self.params if "..." in (option.metavar or "") for name in option.opts}
        words, current = [], None
        for word in args:
            if word.startswith("-"):
                current = word if word in lists else None
            elif current and words[-1] != current:
                words.append(current)
            words.append(word)
        return super().parse_args(ctx, words)


def _parse_values(context: click.Context, option: click.Parameter, pairs: tuple) -> dict:
    texts = {}
    for name, text in pairs:
        if texts.setdefault(name, text) != text:
            raise BadInput(f"-p {name} is given twice: {texts[name]} and {text}", field=name)
    return {name: parse_value(name, text) for name, text in texts.items()}


def _parse_recipe(context: click.Context, option: click.Parameter, pairs: tuple) -> Recipe:
    """The recipe of `mode` and `-p`; a mode that is not there is refused here, before torch loads."""
    values, mode = _parse_values(context, option, pairs), context.params["mode"]
    if mode is not None and values.setdefault("mode", mode) != mode:
        raise BadInput(f"mode {mode} and -p mode {values['mode']}: give one of them", field="mode")
    recipe = override(Recipe(), **values)
    load_mode(recipe.mode)
    return recipe


def check_sources(recipe: Recipe) -> None:
    """Raise BadInput for models and data that are neither here nor a hub's name, before torch loads."""
    for name in ("model", "chat_model"):
        if (value := getattr(recipe, name)) is not None:
            find_model_folder(value)
    for name in (*ROLES, *(f"{role}_probe" for role in ROLES)):
        if (value := getattr(recipe, name)) is not None:
            check_source(value, name)


def choose_folder(recipe: Recipe, out: str | None, name: str) -> Path:
    """The folder of a run: by `--out` or the recipe's `output_dir`, else a new one named after `name`."""
    if out and recipe.output_dir not in (None, out):
        raise BadInput(f"--out {out} and -p output_dir {recipe.output_dir}: give one of them",
                       field="output_dir")
    return new_run_folder(name, recipe.method, out or recipe.output_dir)


def _parameter_option(name: str, callback) -> click.Option:
    return click.option("-p", "--parameter", name, nargs=2, multiple=True, callback=callback,
                        metavar="NAME VALUE", help="set a recipe parameter, of the list below; repeatable")


MODE = click.argument("mode", is_eager=True, help="1 to 7, or a TOML file with a mode of your own")
RECIPE = _parameter_option("recipe", _parse_recipe)
VALUES = _parameter_option("values", _parse_values)
# callbacks: of a type's error click (8.5) shows the value alone
RUN = click.argument("run", callback=lambda context, option, run: find_run(run),
                     help="a run's folder, or its name under runs/")
RUNS = click.argument("runs", metavar="RUN...", nargs=-1, required=True,
                      callback=lambda context, option, runs: tuple(map(find_run, runs)),
                      help="folders of runs, or their names under runs/")
OUT = click.option("--out", metavar="DIR", help="the run's folder  [default: a new one under runs/]")
COUNT, FROM_ZERO = click.IntRange(1), click.IntRange(0)
JSON = click.option("--json", "as_json", is_flag=True, help="print JSON instead of text")
# \b keeps click from wrapping the lines
PARAMETERS = "\b\nRecipe parameters (-p NAME VALUE):\n" + "\n".join(
    f"  {name:<33}{field_type(name).__name__:<6} {describe_field(name)}" for name in FIELDS)
