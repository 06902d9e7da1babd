"""The commands of `sftbench` that read runs and train nothing: a run, several side by side, their rows."""

from dataclasses import asdict
from pathlib import Path

import click

import sftbench as bench

from . import options
from .errors import BadInput
from .options import JSON, RUN, RUNS, commands, print_json
from .recipes.recipe import ROLES, SCORERS
from .reports.progress import print_line
from .runs.answers import CHOICES, select_rows
from .runs.events import read_events, run_progress
from .runs.folder import read_json
from .sources.names import check_source

ROWS = click.option("--rows", type=click.Choice(CHOICES), help="rows of the probes instead: what was gained, "
                    "what was lost, what is wrong, or the rows of the highest loss")
ROLE = click.option("--role", metavar="ROLE", help="rows of one role alone")
COUNT = click.option("--count", type=options.COUNT, default=10, show_default=True, help="rows at most")


@commands.command()
@RUN
@ROWS
@ROLE
@COUNT
@JSON
def show(run, rows, role, count, as_json) -> None:
    """Print the ledger of a run, how far it is, or rows of its probes before and after."""
    from .reports.ledger import format_partial_ledger
    if rows:
        _print_rows([run], rows, role, count, as_json)
        return
    state = bench.run_state(run)
    if state["state"] in ("done", "none") and not as_json:
        print_line(bench.ledger(run))
        return
    events = read_events(run)
    now = run_progress(events)
    if as_json:
        result = read_json(run, "result.json") if (run / "result.json").exists() else None
        if state["state"] == "none":
            read_json(run, "recipe.json")  # raises where there is no such run
        print_json({"run": run} | state | {"progress": now, "result": result})
        return
    print_line(f"{run}: {state['state']}, {now['text']} ({now['share']:.0%})")
    if state["message"]:
        print_line(state["message"])
    if table := format_partial_ledger(events):
        print_line(f"\n{table}")
    command, effect = ("stop", "a checkpoint is written") if state["alive"] else ("resume", "go on with it")
    print_line(f"\nsftbench {command} {run}   # {effect}")


def _print_rows(runs: list[Path], rows: str, role: str | None, count: int, as_json: bool) -> None:
    """Print rows of the probes between two states: of a run its start and its last, of two runs the last."""
    if as_json:
        print_json([asdict(row) for row in select_rows(bench.changes(*runs), rows, role)[:count]])
    else:
        run, *other = runs
        print_line(bench.rows_text(run, rows, *other, role=role, count=count))


@commands.command()
@RUNS
@ROWS
@ROLE
@COUNT
@JSON
def compare(runs, rows, role, count, as_json) -> None:
    """Print runs side by side and what their recipes differ in, or rows of two runs before and after."""
    from .reports.comparison import format_differences, format_runs, recipe_differences, summarise_run
    for folder in runs:
        read_json(folder, "recipe.json")  # raises where there is no such run
    if rows:
        if len(runs) != 2:
            raise BadInput(f"--rows compares two runs, not {len(runs)}; of one run: sftbench show RUN --rows "
                           f"{rows}", field="rows")
        _print_rows(runs, rows, role, count, as_json)
        return
    data = {"runs": [summarise_run(folder) for folder in runs], "differences": recipe_differences(runs)}
    print_json(data) if as_json else print_line(f"{format_runs(data['runs'])}\n\n{format_differences(runs)}")


@commands.command()
@RUN
@click.option("--probe", metavar="FILE", help="other held-out rows, which the stored models answer  "
                                              "[default: the run's own]")
@click.option("--role", type=click.Choice(ROLES), default="domain_tasks", show_default=True,
              help="the role of --probe")
@click.option("--scorer", type=click.Choice(SCORERS), help="how answers are scored  [default: as in the run]")
@JSON
def score(run, probe, role, scorer, as_json) -> None:
    """Score a run's start and stages anew, by another scorer or on other rows, without training."""
    read_json(run, "recipe.json")  # raises where there is no such run, before torch loads
    if probe:
        check_source(probe, "probe")
    from .reports.ledger import format_rescored
    scored = bench.score(run, probe, role, scorer)
    print_json({"run": run} | scored) if as_json else print_line(format_rescored(scored))
