"""The table of modes: all seven on the pocket, with advised settings, over several company worlds.

    python benchmarks/modes.py [--seeds 3] [--first 0] [--method full] [--out runs/modes]

Prints one line a mode: accuracy on domain and general tasks after the last stage, mean (lowest to highest)
over the seeds, and the seconds that its stages trained, whether or not another mode had trained them first.
"""

import argparse
import sys
import time
from pathlib import Path

from sftbench.recipes.modes import MODES, format_chain
from sftbench.recipes.recipe import Recipe, override
from sftbench.runs.events import format_duration
from sftbench.runs.folder import read_result


def spread(values: list[float], form: str = "{:.2f}") -> str:
    """Mean and, in brackets, the lowest and highest."""
    mean, low, high = (form.format(value) for value in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} ({low}–{high})" if len(values) > 1 else mean


def line(number: str, results: list[dict]) -> str:
    """A mode's line of the table, from its results over the seeds."""
    last = [result["stages"][-1]["probes"] for result in results]
    seconds = [sum(stage["seconds"] for stage in result["stages"]) for result in results]
    chain = format_chain(MODES[number]).replace("[ ", "").replace(" ]", "").replace("  ->  ", " → ")
    return (f"| {number} | {chain} | {spread([probes['domain_tasks']['accuracy'] for probes in last])} "
            f"| {spread([probes['general_tasks']['accuracy'] for probes in last])} "
            f"| {spread(seconds, '{:.0f}')} |")


def main() -> None:
    """Run what is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--method", default="full")
    parser.add_argument("--out", type=Path, default=Path("runs/modes"))
    options = parser.parse_args()
    from sftbench.training.chain import run_chain
    results, began = {number: [] for number in MODES}, time.time()
    for seed in range(options.first, options.first + options.seeds):
        for number in MODES:
            recipe = override(Recipe(), mode=number, method=options.method, pocket_seed=seed,
                              output_dir=str(options.out / f"mode_{number}-{options.method}-{seed}"))
            results[number].append(read_result(run_chain(recipe)))
            sys.stderr.write(f"seed {seed}, mode {number}: {format_duration(time.time() - began)}\n")
    start = {name: next(result["start"]["probes"] for result in results[mode])
             for name, mode in (("base", "1"), ("chat", "6"))}
    sys.stdout.write("| mode | chain | domain accuracy | general accuracy | seconds |\n"
                     "|---|---|---|---|---|\n")
    for name, probes in start.items():
        sys.stdout.write(f"| – | the {name} model, untouched | {probes['domain_tasks']['accuracy']:.2f} "
                         f"| {probes['general_tasks']['accuracy']:.2f} | |\n")
    for number, found in results.items():
        sys.stdout.write(line(number, found) + "\n")


if __name__ == "__main__":
    main()
