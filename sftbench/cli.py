"""The command line: one function a command; what needs torch is imported by the command that needs it.

Exit code 2 for bad input, 1 for a run that failed, 130 for one that was interrupted.
"""

import argparse
import json
import shutil
import sys
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
from .runs.folder import find_run, new_run_folder, read_result, runs_root, store_folder
from .runs.ownership import live_owner


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except BadInput as error:
        sys.stderr.write(f"sftbench: {error}\n" * (not is_follower()))  # rank 0 says the same
        return 2
    except RunFailed as error:
        reason = f" ({error.reason})" if error.reason else ""
        sys.stderr.write(f"sftbench: failed{reason}: {error}\n")
        return 1
    except KeyboardInterrupt as error:
        sys.stderr.write(f"sftbench: {error if str(error) else 'stopped'}\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sftbench", description="Supervised fine-tuning in seven modes and five methods, on one bench.")
    commands = parser.add_subparsers(required=True, metavar="command")
    fields = "recipe parameters (-p NAME VALUE):\n" + "\n".join(
        f"  {name:<33}{field_type(name).__name__:<6} {describe_field(name)}" for name in FIELDS)

    def add(name: str, function, help: str, recipe: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help, epilog=fields if recipe else None,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
        command.set_defaults(command=function)
        if recipe:
            command.add_argument("-p", "--parameter", nargs=2, action="append", default=[],
                                 metavar=("NAME", "VALUE"), help="set one recipe parameter; may be repeated")
        return command

    before = add("forecast", _forecast, "tell how much memory and time a run would take", recipe=True)
    before.add_argument("--quick", action="store_true", help="memory only: no steps are tried")
    run = add("run", _run, "train a mode's chain and print its ledger", recipe=True)
    for command in (before, run):
        command.add_argument("mode", help="1 to 7, or a TOML file with a mode of your own")
    book = add("notebook", _notebook, "run a mode's notebook headless through papermill", recipe=True)
    book.add_argument("which", metavar="MODE|PATH", help="1 to 7, or the path of a notebook")
    book.add_argument("--timeout", type=int, metavar="SECONDS", help="longest time for one cell")
    for command in (run, book):
        command.add_argument("--out", metavar="DIR",
                             help="folder of the run (default: a new one under runs/)")
    _add_a_run(add("resume", _resume, "let a run go on that was stopped or broke"))
    stop = add("stop", _stop, "stop a run, whoever started it: after a step, with a checkpoint")
    _add_a_run(stop)
    stop.add_argument("--patience", type=float, default=30, metavar="SECONDS",
                      help="how long a step may take before it is broken off (default: 30)")
    _add_a_run(add("show", _show, "print the ledger of a run"))
    _add_talk(add("talk", _talk, "put the same prompts to several checkpoints"))
    _add_eval(add("eval", _eval, "score a run's checkpoints on standard benchmarks through lm-eval"))
    _add_export(add("export", _export, "write a stage as a folder that plain transformers or PEFT loads"))
    _add_look(add("look", _look, "show what the model really sees: rows token by token, with their mask",
                  recipe=True))
    _add_check(add("check", _check, "check data files: shapes, bad rows, lengths, leaks, characters"))
    add("modes", _modes, "list the modes and their stages")
    add("rules", _rules, "list the rules R1 to R16 that advice rests on")
    add("methods", _methods, "list the methods and their parameters")
    _add_advise(add("advise", _advise, "suggest mode and hyperparameters, with the rules that lead to them",
                    recipe=True))
    _add_pocket(add("pocket", _pocket,
                    "write the pocket's data as files: an example of what yours should look like"))
    stages = add("stages", _stages, "list stored stages that no run uses")
    stages.add_argument("--remove", action="store_true", help="remove them")
    return parser


def _add_pocket(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=["write"])
    command.add_argument("folder", help="where the eight files go: four roles, each with its probe")
    command.add_argument("--seed", type=int, default=0, help="which of the invented companies (default: 0)")
    command.add_argument("--unrelated", action="store_true",
                         help="domain tasks in a form that no general task has")


def _add_look(command: argparse.ArgumentParser) -> None:
    command.add_argument("mode", help="1 to 7, or a TOML file with a mode of your own")
    command.add_argument("--role", metavar="ROLE", help="one role alone (default: each of the mode's)")
    command.add_argument("--row", type=int, default=1, metavar="N",
                         help="from which training row on (default: 1)")
    command.add_argument("--rows", type=int, default=1, metavar="N",
                         help="how many rows of each role (default: 1)")


def _add_check(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", nargs="+", help="file, folder or hub name, as in a recipe")
    command.add_argument("--role", metavar="ROLE", help="domain_text, domain_tasks, general_text or "
                                                        "general_tasks (default: by the first row)")
    command.add_argument("--model", default=Recipe().model,
                         help="whose tokenizer counts (default: the pocket)")
    command.add_argument("--probe", metavar="FILE", help="the probe's file, to find rows that stand in both")
    command.add_argument("--max-length", type=int, metavar="N",
                         help="tokens in a block (default: as advised)")
    command.add_argument("--system-prompts", metavar="TEXT|TOML",
                         help="system message of tasks that have none")
    command.add_argument("--picture", metavar="PNG", help="where to draw the histogram of lengths")


def _add_a_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=find_run, help="a run's folder, or its name under runs/")


def _add_talk(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", nargs="+",
                         help="a run's folder (its last stage), RUN:start, RUN:STAGE, or a model")
    command.add_argument("--prompt", action="append", metavar="TEXT",
                         help="what to ask; may be repeated (default: the run's first probe questions)")
    command.add_argument("--system", metavar="TEXT", help="a system prompt before each of them")
    command.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer, in tokens")
    command.add_argument("--json", action="store_true", help="a JSON list of checkpoint, prompt and answer")


def _add_eval(command: argparse.ArgumentParser) -> None:
    _add_a_run(command)
    command.add_argument("--tasks", nargs="+", required=True, metavar="TASK",
                         help="lm-eval's names, or .yaml files with tasks of your own")
    command.add_argument("--stages", nargs="+", metavar="STAGE",
                         help="start and names of stages (default: start and the last stage)")
    command.add_argument("--limit", type=int, metavar="ROWS", help="the first rows of each task only")


def _add_export(command: argparse.ArgumentParser) -> None:
    _add_a_run(command)
    command.add_argument("folder", metavar="DIR", help="where to, a new folder")
    command.add_argument("--stage", metavar="N|NAME", help="which stage (default: the last)")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--merged", dest="form", action="store_const", const="merged",
                      help="whole weights (default, where the method has them)")
    form.add_argument("--adapter", dest="form", action="store_const", const="adapter",
                      help="the adapter of lora, qlora or ptuning_v2, to go on top of its base")
    command.add_argument("--rows", type=int, default=0, metavar="N",
                         help="show so many questions of the probe in the model card (default: none)")
    command.add_argument("--push", metavar="OWNER/NAME",
                         help="upload it as a private repository, with the environment's HF_TOKEN")
    command.add_argument("--public", action="store_true", help="make that repository public")


def _add_advise(command: argparse.ArgumentParser) -> None:
    command.add_argument("mode", nargs="?", help="the mode you have in mind (default: the suggested one)")
    command.add_argument("--wants", choices=("domain", "both"),
                         help="only the domain counts, or general ability too")
    command.add_argument("--resources", choices=("much", "little"),
                         help="how much hardware and time there is")
    command.add_argument("--related", action="store_true", help="the domain's tasks are akin to general ones")
    command.add_argument("--quick", action="store_true", help="do not load the model to measure its loss")


def recipe_from_options(options: argparse.Namespace, **more) -> Recipe:
    """The recipe that the options describe; a mode that is not there is refused before anything is loaded."""
    recipe = override(Recipe(), **{name: parse_value(name, text) for name, text in options.parameter} | more)
    load_mode(recipe.mode)
    return recipe


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
    _report(folder, {"loss picture": folder / "loss.png"})


def _resume(options) -> None:
    from .workers.client import stored_recipe
    _train(stored_recipe(options.run), Path(options.run), warn=False)


def _stop(options) -> None:
    from .workers.client import run_state, stop_run
    if live_owner(options.run) is None:
        raise BadInput(f"{options.run}: no process runs it (state: {run_state(options.run)['state']})")
    now = stop_run(options.run, options.patience)
    print_line(f"{now['state']}{': ' + now['message'] if now['message'] else ''}")
    if now["state"] in ("stopped", "killed"):
        print_line(f"go on with: sftbench resume {options.run}")


def _forecast(options) -> None:
    recipe = recipe_from_options(options, mode=options.mode)
    from .reports.ledger import format_forecast
    from .training.forecast import forecast_recipe
    print_line(format_forecast(forecast_recipe(recipe, timed=not options.quick)))


def _notebook(options) -> None:
    from .notebook import execute_notebook, find_notebook
    path = find_notebook(options.which)
    values = {name: parse_value(name, text) for name, text in options.parameter}
    recipe = override(Recipe(), **values)
    out = Path(options.out) if options.out else new_run_folder(path.stem, recipe.method, recipe.output_dir)
    with show_progress(out):
        executed = execute_notebook(path, values, out, options.timeout)
    _report(out, {"executed notebook": executed, "loss picture": out / "loss.png"})


def _report(folder: Path, places: dict[str, Path]) -> None:
    """The ledger, and where everything lies."""
    from .reports.ledger import format_ledger
    stage = read_result(folder)["stages"][-1]
    print_line("\n" + format_ledger(folder) + "\n")
    kind = "adapter" if stage["method"] == "ptuning_v2" else "model"
    for name, path in {**places, kind: store_folder(folder) / stage["key"] / kind}.items():
        print_line(f"{name + ':':<20}{path}")
    print_line(
        f"\nnext: sftbench talk {folder}:start {folder}  ·  sftbench export {folder} NEW_FOLDER  ·  make lab"
    )


def _show(options) -> None:
    from .reports.ledger import format_ledger, format_partial_ledger
    from .workers.client import run_state
    state, folder = run_state(options.run), Path(options.run)
    if state["state"] in ("done", "none"):
        print_line(format_ledger(folder))
        return
    events = read_events(folder)
    now = run_progress(events)
    print_line(f"{folder}: {state['state']}, {now['text']} ({now['share']:.0%})")
    if state["message"]:
        print_line(state["message"])
    if table := format_partial_ledger(events):
        print_line(f"\n{table}")
    print_line(f"\nsftbench {'stop' if state['alive'] else 'resume'} {folder}   # "
        + ("a checkpoint is kept" if state["alive"] else "go on with it"))


def _talk(options) -> None:
    from .evaluation.chat import talk
    from .reports.text import format_answers
    answers = talk(options.checkpoint, options.prompt, options.system, options.max_new_tokens)
    print_line(json.dumps(answers, ensure_ascii=False, indent=1) if options.json else format_answers(answers))


def _eval(options) -> None:
    from .evaluation.benchmarks import run_benchmarks
    from .reports.text import format_scores
    tasks = [task for part in options.tasks for task in part.split(",") if task]
    print_line(format_scores(run_benchmarks(options.run, tasks, options.stages, options.limit)))


def _export(options) -> None:
    from .export.export import export_stage, push_folder
    done = export_stage(options.run, options.folder, options.stage, options.form, options.rows)
    print_line(f"{done['folder']}: stage {done['stage']}, {done['form']}, {done['bytes'] / 1e6:.1f} MB")
    print_line(
        f"loaded again by itself, it gave {done['equal']} of {done['asked']} answers as the run's model did"
    )
    if options.push:
        print_line(f"pushed to {push_folder(options.folder, options.push, options.public)}")


def _look(options) -> None:
    recipe = recipe_from_options(options, mode=options.mode)
    from .reports.text import look_at_data
    from .training.prepare import prepare_recipe
    prepared = prepare_recipe(recipe)
    print_line(look_at_data(prepared, options.rows, options.role, options.row))


def _check(options) -> None:
    from .reports.data_report import draw_lengths, format_report, join_sources, measure_data
    report = measure_data(join_sources(options.file), options.role, options.probe, model=options.model,
                          max_length=options.max_length, system_prompts=options.system_prompts)
    print_line(format_report(report))
    if options.picture:
        draw_lengths(report, options.picture)
        print_line(f"\nhistogram: {options.picture}")
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
    from .training.prepare import advise_recipe
    said = {"wants": options.wants, "resources": options.resources, "related": options.related}
    print_line(advise_recipe(recipe, said, with_losses=not options.quick, settle_mode=options.mode is None))


def _pocket(options) -> None:
    from .pocket.world import write_files
    paths = write_files(options.folder, options.seed, related=not options.unrelated)
    for path in paths:
        with open(path, encoding="utf-8") as file:
            print_line(f"{path}  {sum(1 for _ in file):,} rows")
    print_line("\nas the data of a run:  " + " ".join(f"-p {path.stem} {path}" for path in paths))


def _stages(options) -> None:
    from .runs.stage_store import unused_stages
    shelf = runs_root().resolve() / ".stages"
    found = unused_stages(shelf)
    for path in found:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if options.remove:
            shutil.rmtree(path)
        print_line(f"{'removed ' if options.remove else ''}{path}  {size / 1e6:.1f} MB")
    print_line(f"{len(found)} stages that no run under {shelf.parent} uses"
        + ("" if options.remove or not found else "; --remove deletes them"))

