"""The commands of `sftbench` that need no run: lists, models to fetch, the pocket's files, unused stages."""

import shutil
from pathlib import Path

import click

from .errors import BadInput
from .named.models import NAMED, describe_origin
from .options import FROM_ZERO, commands
from .recipes.modes import MODES, format_chain, load_mode
from .recipes.recipe import METHOD_DESCRIPTIONS, METHOD_OPTIONS, describe_field
from .reports.progress import print_line
from .runs.folder import runs_root


@commands.command()
@click.argument("action", metavar="write", type=click.Choice(["write"]))
@click.argument("folder", help="where the eight files go: four roles, each with its probe")
@click.option("--seed", type=FROM_ZERO, default=0, show_default=True, help="which of the invented companies")
@click.option("--unrelated", is_flag=True, help="domain tasks in a form that no general task has")
def pocket(action, folder, seed, unrelated) -> None:
    """Write the pocket's data as files, an example for your own."""
    from .pocket.world import write_files
    paths = write_files(folder, seed, related=not unrelated)
    for path in paths:
        print_line(f"{path}  {len(path.read_text(encoding='utf-8').splitlines()):,} rows")
    print_line("\nas the data of a run:  " + " ".join(f"-p {path.stem} {path}" for path in paths))


@commands.command()
@click.argument("model", help=f"a named model ({', '.join(NAMED)}), or a hub name")
def fetch(model) -> None:
    """Fetch a model, with its chat model: all else works offline then."""
    from .models.loading import fetch_model, silence_libraries
    from .named.fetch import make_from_wheel
    silence_libraries()
    entries = [NAMED[name] for name in (model, NAMED[model].chat) if name] if model in NAMED else []
    absent = []
    for entry in entries:
        try:
            folder = fetch_model(entry.name)
        except BadInput as error:  # no hub answers, and nothing of it is in the cache
            if not entry.wheel:
                absent.append(error)
                continue
            folder = make_from_wheel(entry)
        print_line(f"{entry.name}: {describe_origin(entry.name)}\n  {folder}")
    if not entries:
        print_line(f"{model}: {fetch_model(model)}")
    if absent and len(absent) == len(entries):
        raise absent[0]
    for error in absent:
        print_line(f"not here: {error}")


@commands.command()
@click.argument("mode", required=False, help="this mode alone: 1 to 7, its name, or a TOML file")
def modes(mode) -> None:
    """List the modes and their stages."""
    chosen = {number: known for number, known in MODES.items()
              if mode in (None, number, known.name)} or {mode: load_mode(mode)}
    for number, mode in chosen.items():
        print_line(f"{number}  {mode.name}\n   {mode.sentence}\n   {format_chain(mode)}\n")


@commands.command()
def rules() -> None:
    """List the rules R1 to R16 that advice rests on."""
    from .recipes.rules import RULES
    for name, rule in RULES.items():
        print_line(f"{name:<5}{rule.__doc__.splitlines()[0]}")


@commands.command()
def methods() -> None:
    """List the methods and their parameters."""
    for method, words in METHOD_DESCRIPTIONS.items():
        print_line(f"{method:<12}{words}")
        for name in METHOD_OPTIONS[method]:
            print_line(f"{'':<12}  {name:<27}{describe_field(name)}")


@commands.command()
@click.argument("folder", required=False)
@click.option("--remove", is_flag=True, help="remove them")
def stages(folder, remove) -> None:
    """List stored stages that no run uses.

    FOLDER is where the runs lie, if not in runs/ or SFTBENCH_RUNS.
    """
    from .runs.stage_store import unused_stages
    root = Path(folder).expanduser() if folder else runs_root()
    if folder and not root.is_dir():
        raise BadInput(f"{folder}: no such folder; give one in which runs lie", field="folder", where=folder)
    store = root.resolve() / ".stages"
    unused = unused_stages(store)
    for path in unused:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if remove:
            shutil.rmtree(path)
        print_line(f"{'removed ' if remove else ''}{path}  {size / 1e6:.1f} MB")
    print_line(f"{len(unused)} stages that no run under {store.parent} uses"
               + ("" if remove or not unused else "; --remove deletes them"))
