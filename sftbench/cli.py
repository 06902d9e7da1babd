"""The command line: one function a command; what needs torch is imported by the command that needs it.

Exit code 2 for bad input, 1 for a run that failed, 130 for one that was interrupted. By argparse, since click
8.5 and typer 0.29 have no options with several values, such as `--tasks A B C`.
"""

import argparse
import json
import shutil
import sys
import tomllib
from pathlib import Path

from .distributed import is_follower
from .errors import BadInput, RunFailed, Stopped
from .recipes.modes import MODES, format_chain, load_mode
from .recipes.recipe import (
    FIELDS,
    METHOD_DESCRIPTIONS,
    METHOD_OPTIONS,
    Recipe,
    describe_field,
    field_type,
    override,
    parse_value,
)
from .reports.progress import print_line, show_progress
from .runs.events import read_events, run_progress
from .runs.folder import find_run, new_run_folder, read_json, read_result, runs_root, store_folder
from .runs.ownership import live_owner

TYPES = {"int": int, "float": float, "run": find_run}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        options.function(options)
    except BadInput as error:
        sys.stderr.write(f"sftbench: {error}\n" * (not is_follower()))  # rank 0 writes the same
        return 2
    except RunFailed as error:
        reason = f" ({error.reason})" if error.reason else ""
        sys.stderr.write(f"sftbench: failed{reason}: {error}\n")
        return 1
    except KeyboardInterrupt as error:
        sys.stderr.write(f"sftbench: {error if str(error) else 'stopped'}\n")
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands, which `commands.toml` lists; `function` is the command's function here."""
    parser = argparse.ArgumentParser(
        prog="sftbench", description="Supervised fine-tuning in seven modes and five methods, on one bench.")
    commands = parser.add_subparsers(required=True, metavar="command")
    fields = "recipe parameters (-p NAME VALUE):\n" + "\n".join(
        f"  {name:<33}{field_type(name).__name__:<6} {describe_field(name)}" for name in FIELDS)
    listed = tomllib.loads(Path(__file__).with_name("commands.toml").read_text(encoding="utf-8"))
    for name, entry in listed["commands"].items():
        shared = entry.get("shared", [])
        command = commands.add_parser(
            name, help=entry["help"], description=entry["help"],
            epilog=fields if "parameter" in shared else None,
            formatter_class=argparse.RawDescriptionHelpFormatter)
        command.set_defaults(function=globals()[f"_{name}"])
        arguments = [*(listed["shared"][one] for one in shared), *entry.get("arguments", [])]
        alternatives = None  # argparse in Python 3.11 fails on an empty group
        if any("dest" in argument for argument in arguments):
            alternatives = command.add_mutually_exclusive_group()
        for argument in arguments:
            settings = {key: tuple(value) if key == "metavar" and isinstance(value, list) else value
                        for key, value in argument.items() if key != "flags"}
            if "type" in settings:
                settings["type"] = TYPES[settings["type"]]
            (alternatives if "dest" in settings else command).add_argument(*argument["flags"], **settings)
    return parser


def recipe_from_options(options: argparse.Namespace, **more) -> Recipe:
    """The recipe that the options describe; a mode that is not there is refused before anything is loaded."""
    recipe = override(Recipe(), **{name: parse_value(name, text) for name, text in options.parameter} | more)
    load_mode(recipe.mode)
    return recipe


def _print_json(data) -> None:
    print_line(json.dumps(data, ensure_ascii=False, indent=1, default=str))


def _run(options) -> None:
    recipe = recipe_from_options(options, mode=options.mode)
    folder = (Path(options.out) if options.out
              else new_run_folder(recipe.mode, recipe.method, recipe.output_dir))
    _train(recipe, folder)


def _train(recipe: Recipe, folder: Path, warn: bool = True) -> None:
    """Run the recipe here, in this terminal; Ctrl-C stops it after a step, and says how to go on."""
    if is_follower():
        from .training.chain import run_chain
        run_chain(recipe)
        return
    try:
        with show_progress(folder, warn):
            from .reports.plots import save_plot
            from .training.chain import run_chain
            run_chain(override(recipe, output_dir=str(folder)))
            save_plot(folder)
    except KeyboardInterrupt as error:
        command = f"sftbench resume {folder}" if (folder / "recipe.json").exists() else "the same command"
        raise Stopped(f"{str(error) or 'stopped'}; go on with: {command}") from None
    _print_result(folder, {"loss picture": folder / "loss.png"})


def _resume(options) -> None:
    from .workers.client import stored_recipe
    _train(stored_recipe(options.run), Path(options.run), warn=False)


def _stop(options) -> None:
    from .workers.client import run_state, stop_run
    if live_owner(options.run) is None:
        raise BadInput(f"{options.run}: no process runs it (state: {run_state(options.run)['state']})",
                       where=str(options.run))
    now = stop_run(options.run, options.patience)
    print_line(f"{now['state']}{': ' + now['message'] if now['message'] else ''}")
    if now["state"] in ("stopped", "killed"):
        print_line(f"go on with: sftbench resume {options.run}")


def _forecast(options) -> None:
    recipe = recipe_from_options(options, mode=options.mode)
    from .reports.ledger import format_forecast
    from .training.forecast import forecast_recipe
    forecast = forecast_recipe(recipe, timed=not options.quick)
    _print_json(forecast) if options.json else print_line(format_forecast(forecast))


def _notebook(options) -> None:
    from .notebook import execute_notebook, find_notebook
    path = find_notebook(options.which)
    values = {name: parse_value(name, text) for name, text in options.parameter}
    recipe = override(Recipe(), **values)
    out = Path(options.out) if options.out else new_run_folder(path.stem, recipe.method, recipe.output_dir)
    with show_progress(out):
        executed = execute_notebook(path, values, out, options.timeout)
    _print_result(out, {"executed notebook": executed, "loss picture": out / "loss.png"})


def _print_result(folder: Path, paths: dict[str, Path]) -> None:
    """The ledger, where everything lies, and what to do next."""
    from .reports.ledger import format_ledger
    stage = read_result(folder)["stages"][-1]
    print_line("\n" + format_ledger(folder) + "\n")
    kind = "adapter" if stage["method"] == "ptuning_v2" else "model"
    for name, path in {**paths, kind: store_folder(folder) / stage["key"] / kind}.items():
        print_line(f"{name + ':':<20}{path}")
    print_line(f"\nnext: sftbench talk {folder}:start {folder}  ·  sftbench export {folder} NEW_FOLDER  ·  "
               "make lab")


def _show(options) -> None:
    from .reports.ledger import format_ledger, format_partial_ledger
    from .workers.client import run_state
    state, folder = run_state(options.run), Path(options.run)
    if state["state"] in ("done", "none") and not options.json:
        print_line(format_ledger(folder))
        return
    events = read_events(folder)
    now = run_progress(events)
    if options.json:
        result = read_json(folder, "result.json") if (folder / "result.json").exists() else None
        if result is None and state["state"] == "none":
            read_json(folder, "recipe.json")  # raises where there is no such run
        _print_json({"run": folder} | state | {"progress": now, "result": result})
        return
    print_line(f"{folder}: {state['state']}, {now['text']} ({now['share']:.0%})")
    if state["message"]:
        print_line(state["message"])
    if table := format_partial_ledger(events):
        print_line(f"\n{table}")
    print_line(f"\nsftbench {'stop' if state['alive'] else 'resume'} {folder}   # "
               + ("a checkpoint is written" if state["alive"] else "go on with it"))


def _compare(options) -> None:
    from .reports.comparison import format_differences, format_runs, recipe_differences, summarise_run
    for folder in options.runs:
        read_json(folder, "recipe.json")  # raises where there is no such run
    runs = list(map(summarise_run, options.runs))
    if options.json:
        _print_json({"runs": runs, "differences": recipe_differences(options.runs)})
    else:
        print_line(f"{format_runs(runs)}\n\n{format_differences(options.runs)}")


def _talk(options) -> None:
    from .evaluation.chat import talk
    from .reports.text import format_answers
    answers = talk(options.checkpoint, options.prompt, options.system, options.max_new_tokens)
    _print_json(answers) if options.json else print_line(format_answers(answers))


def _eval(options) -> None:
    from .evaluation.benchmarks import run_benchmarks
    from .reports.text import format_scores
    tasks = [task for part in options.tasks for task in part.split(",") if task]
    print_line(format_scores(run_benchmarks(options.run, tasks, options.stages, options.limit)))


def _export(options) -> None:
    from .export.export import export_stage
    done = export_stage(options.run, options.folder, options.stage, options.form, options.rows)
    print_line(f"{done['folder']}: stage {done['stage']}, {done['form']}, {done['bytes'] / 1e6:.1f} MB")
    print_line(f"loaded again by itself, it gave {done['equal']} of {done['prompts']} answers as the run's "
               "model did")


def _look(options) -> None:
    recipe = recipe_from_options(options, mode=options.mode)
    from .reports.text import look_at_data
    from .training.prepare import prepare_recipe
    print_line(look_at_data(prepare_recipe(recipe), options.rows, options.role, options.row))


def _check(options) -> None:
    from .reports.data_report import draw_lengths, format_report, join_sources, measure_data
    report = measure_data(join_sources(options.file), options.role, options.probe, model=options.model,
                          max_length=options.max_length, system_prompts=options.system_prompts)
    _print_json(report.to_dict()) if options.json else print_line(format_report(report))
    if options.picture:
        draw_lengths(report, options.picture)
        print_line(f"\nhistogram: {options.picture}" * (not options.json))
    if report.stops:
        raise BadInput("; ".join(report.stops))


def _modes(options) -> None:
    for number, mode in MODES.items():
        print_line(f"{number}  {mode.name}\n   {mode.sentence}\n   {format_chain(mode)}\n")


def _rules(options) -> None:
    from .recipes.rules import RULES
    for name, rule in RULES.items():
        print_line(f"{name:<5}{rule.__doc__.splitlines()[0]}")


def _methods(options) -> None:
    for method, words in METHOD_DESCRIPTIONS.items():
        print_line(f"{method:<12}{words}")
        for name in METHOD_OPTIONS[method]:
            print_line(f"{'':<12}  {name:<27}{describe_field(name)}")


def _advise(options) -> None:
    recipe = recipe_from_options(options, **({"mode": options.mode} if options.mode else {}))
    from .reports.text import format_advice
    from .training.prepare import advise_recipe
    stated = {"wants": options.wants, "resources": options.resources, "related": options.related}
    advice = advise_recipe(recipe, stated, with_losses=not options.quick, settle_mode=options.mode is None)
    _print_json(advice.to_dict()) if options.json else print_line(format_advice(advice))


def _pocket(options) -> None:
    from .pocket.world import write_files
    paths = write_files(options.folder, options.seed, related=not options.unrelated)
    for path in paths:
        with open(path, encoding="utf-8") as file:
            print_line(f"{path}  {sum(1 for _ in file):,} rows")
    print_line("\nas the data of a run:  " + " ".join(f"-p {path.stem} {path}" for path in paths))


def _stages(options) -> None:
    from .runs.stage_store import unused_stages
    store = runs_root().resolve() / ".stages"
    unused = unused_stages(store)
    for path in unused:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if options.remove:
            shutil.rmtree(path)
        print_line(f"{'removed ' if options.remove else ''}{path}  {size / 1e6:.1f} MB")
    print_line(f"{len(unused)} stages that no run under {store.parent} uses"
               + ("" if options.remove or not unused else "; --remove deletes them"))
