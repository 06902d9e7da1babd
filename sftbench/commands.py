"""The commands of `sftbench`, one function each; what loads torch is imported where it is used.

`bench` is the package as a notebook sees it: its names are loaded when they are first used.
"""

from pathlib import Path

import click

import sftbench as bench

from . import listings, options, results  # noqa: F401 (their commands belong to the same group)
from .distributed import is_follower
from .errors import BadInput, Stopped
from .options import JSON, MODE, OUT, PARAMETERS, RECIPE, RUN, VALUES, ListCommand, commands, print_json
from .recipes.recipe import Recipe, override
from .reports.progress import print_line, show_progress
from .runs.folder import read_json, read_result, store_folder
from .runs.ownership import catch_stops, live_owner
from .sources.names import check_source


@commands.command(epilog=PARAMETERS)
@MODE
@RECIPE
@OUT
def run(mode, recipe, out) -> None:
    """Train a mode's chain of stages and print its ledger."""
    _train(recipe, options.choose_folder(recipe, out, recipe.mode))


def _train(recipe: Recipe, folder: Path, warn: bool = True) -> None:
    """Run the recipe here, in this terminal; Ctrl-C stops it after a step and shows how to go on."""
    if is_follower():
        bench.run(recipe)
        return
    try:
        with catch_stops(), show_progress(folder, warn):  # the chain itself catches them from its start
            bench.run(override(recipe, output_dir=str(folder)))
            bench.save_plot(folder)
    except KeyboardInterrupt as error:
        command = f"sftbench resume {folder}" if (folder / "recipe.json").exists() else "the same command"
        raise Stopped(f"{str(error) or 'stopped'}; go on with: {command}") from None
    _print_result(folder, {"loss picture": folder / "loss.png"})


def _print_result(folder: Path, paths: dict[str, Path]) -> None:
    """Print the ledger, the paths of what was written, and what to do next."""
    stage = read_result(folder)["stages"][-1]
    print_line(f"\n{bench.ledger(folder)}\n")
    kind = "adapter" if stage["method"] == "ptuning_v2" else "model"
    for name, path in {**paths, kind: store_folder(folder) / stage["key"] / kind}.items():
        print_line(f"{name + ':':<20}{path}")
    print_line(f"\nnext: sftbench talk {folder}:start {folder}  ·  sftbench export {folder} DIR  ·  make lab")


@commands.command()
@RUN
def resume(run) -> None:
    """Go on with a run that was stopped or failed."""
    from .workers.client import stored_recipe
    recipe = stored_recipe(run)
    options.check_sources(recipe)
    _train(recipe, run, warn=False)


@commands.command()
@RUN
@click.option("--patience", type=click.FloatRange(0), default=30, show_default=True, metavar="SECONDS",
              help="how long a step may take before it is broken off")
def stop(run, patience) -> None:
    """Stop a run, whoever started it: after a step, with a checkpoint."""
    if live_owner(run) is None:
        raise BadInput(f"{run}: no process runs it (state: {bench.run_state(run)['state']})", where=str(run))
    now = bench.stop_run(run, patience)
    print_line(": ".join(filter(None, [now["state"], now["message"]])))
    if now["state"] in ("stopped", "killed"):
        print_line(f"go on with: sftbench resume {run}")


@commands.command(epilog=PARAMETERS)
@click.argument("which", metavar="MODE|PATH", help="1 to 7, or the path of a notebook")
@VALUES
@OUT
@click.option("--timeout", type=options.COUNT, metavar="SECONDS", help="maximum time of one cell")
def notebook(which, values, out, timeout) -> None:
    """Run a mode's notebook headless through papermill."""
    from .notebook import execute_notebook, find_notebook
    path = find_notebook(which)
    recipe = override(Recipe(), **values)
    options.check_sources(recipe)
    folder = options.choose_folder(recipe, out, path.stem)
    with show_progress(folder):
        executed = execute_notebook(path, values, folder, timeout)
    _print_result(folder, {"executed notebook": executed, "loss picture": folder / "loss.png"})


@commands.command()
@click.argument("checkpoints", metavar="CHECKPOINT...", nargs=-1, required=True,
                help="a run's folder (its last stage), RUN:start, RUN:STAGE, or a model")
@click.option("--prompt", multiple=True, metavar="TEXT", help="repeatable  [default: questions of the probe]")
@click.option("--system", metavar="TEXT", help="a system prompt before each of them")
@click.option("--max-new-tokens", type=options.COUNT, metavar="N", help="longest answer, in tokens")
@JSON
def talk(checkpoints, prompt, system, max_new_tokens, as_json) -> None:
    """Put the same prompts to several checkpoints."""
    from .evaluation.chat import talk
    from .reports.text import format_answers
    answers = talk(checkpoints, prompt, system, max_new_tokens)
    print_json(answers) if as_json else print_line(format_answers(answers))


@commands.command("eval", cls=ListCommand)
@RUN
@click.option("--tasks", multiple=True, required=True, metavar="TASK...",
              help="lm-eval's names, or .yaml files with tasks of your own")
@click.option("--stages", multiple=True, metavar="STAGE...", help="[default: start and the last stage]")
@click.option("--limit", type=options.COUNT, metavar="ROWS", help="the first rows of each task only")
def evaluate(run, tasks, stages, limit) -> None:
    """Score a run's checkpoints on lm-eval's benchmarks."""
    read_json(run, "recipe.json")  # raises where there is no such run, before torch loads
    from .evaluation.benchmarks import run_benchmarks
    from .reports.text import format_scores
    names = [task for part in tasks for task in part.split(",") if task]
    print_line(format_scores(run_benchmarks(run, names, stages, limit)))


@commands.command()
@RUN
@click.argument("folder", metavar="DIR", help="where to write it, a new folder")
@click.option("--stage", metavar="N|NAME", help="which stage  [default: the last]")
@click.option("--merged", is_flag=True, help="complete weights  [default, where the method has them]")
@click.option("--adapter", is_flag=True, help="the adapter of lora, qlora or ptuning_v2, to go on its base")
@click.option("--rows", type=options.FROM_ZERO, default=0, metavar="N",
              help="probe questions on the card  [default: 0]")
def export(run, folder, stage, rows, **forms) -> None:
    """Write a stage as a folder that plain transformers or PEFT loads."""
    read_json(run, "recipe.json")
    from .export.export import export_stage
    if all(forms.values()):
        raise BadInput("--merged and --adapter exclude each other", field="--adapter")
    form = next((name for name, chosen in forms.items() if chosen), None)
    done = export_stage(run, folder, stage, form, rows)
    print_line(f"{done['folder']}: stage {done['stage']}, {done['form']}, {done['bytes'] / 1e6:.1f} MB")
    print_line(f"loaded alone, it gave {done['equal']} of {done['prompts']} answers as the run's model did")


@commands.command(epilog=PARAMETERS)
@MODE
@RECIPE
@click.option("--role", metavar="ROLE", help="one role alone  [default: each of the mode's]")
@click.option("--row", type=options.COUNT, default=1, show_default=True, help="first training row")
@click.option("--rows", type=options.COUNT, default=1, show_default=True, help="rows of each role")
def look(mode, recipe, role, row, rows) -> None:
    """Show what the model sees: rows token by token, with their mask."""
    print_line(f"{bench.look(bench.prepare(recipe), rows, role, row)}\n\n«trained» · read only · | between "
               "tokens · ‖ a text is cut · ↵ a line's end")


@commands.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, help="file, folder or hub name")
@click.option("--role", metavar="ROLE", help="domain_text, domain_tasks, general_text or general_tasks  "
                                             "[default: by the first row]")
@click.option("--model", default="pocket", show_default=True, help="whose tokenizer counts")
@click.option("--probe", metavar="FILE", help="the probe's file, to find rows that are in both")
@click.option("--max-length", type=int, metavar="N", help="tokens in a block  [default: as advised]")
@click.option("--system-prompts", metavar="TEXT|TOML", help="system message of tasks that have none")
@click.option("--picture", metavar="PNG", help="where to draw the histogram of lengths")
@JSON
def check(files, role, picture, as_json, **values) -> None:
    """Check data files: shapes, bad rows, lengths, leaks, characters."""
    for source in filter(None, [*files, values["probe"]]):
        check_source(source, role or "check")  # before torch loads
    from .reports.data_report import draw_lengths, format_report, join_sources
    from .training.data_check import measure_data
    report = measure_data(join_sources(files), role, **values)
    if picture:
        draw_lengths(report, picture)
    print_json(report.to_dict()) if as_json else print_line(format_report(report, picture))
    if report.stops:
        raise BadInput("; ".join(report.stops), where=report.source)


@commands.command(epilog=PARAMETERS)
@MODE
@RECIPE
@click.option("--quick", is_flag=True, help="memory only: no steps are tried")
@JSON
def forecast(mode, recipe, quick, as_json) -> None:
    """Predict how much memory and time a run would take."""
    predicted = bench.forecast(recipe, timed=not quick)
    print_json(predicted) if as_json else print_line(bench.forecast_text(predicted))


@commands.command(epilog=PARAMETERS)
@click.argument("mode", required=False, is_eager=True,
                help="the mode you have in mind  [default: the suggested one]")
@RECIPE
@click.option("--wants", type=click.Choice(["domain", "both"]), help="the domain alone, or general too")
@click.option("--resources", type=click.Choice(["much", "little"]), help="how much hardware and time")
@click.option("--related", is_flag=True, help="the domain's tasks are like general ones")
@click.option("--quick", is_flag=True, help="do not load the model to measure its loss")
@click.option("--measure", is_flag=True, help="try learning rates on your model and data, in some minutes; "
                                              "output_dir keeps the curve")
@JSON
def advise(mode, recipe, quick, measure, as_json, **stated) -> None:
    """Suggest mode and hyperparameters, with the rules behind them."""
    from .reports.text import format_advice
    how, curve = {"with_losses": not quick, "settle_mode": mode is None}, {}
    if measure:
        folder = options.choose_folder(recipe, None, "range_test")
        advice, curve = bench.advise_measured(recipe, stated, folder, **how), {"curve": folder / "rates.png"}
    else:
        advice = bench.advise(recipe, stated, **how)
    if as_json:
        print_json(advice.to_dict() | curve)
    else:
        print_line("\n".join([format_advice(advice), *(f"{name}: {path}" for name, path in curve.items())]))
