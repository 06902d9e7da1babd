"""The five methods on the pocket: mode 4 as advised, and sweeps for those that fall short of `full`.

    python benchmarks/methods.py table [--seeds 3]    mode 4, every method with its advised values
    python benchmarks/methods.py rates [--seeds 1]    mode 4, every method at several rates
    python benchmarks/methods.py prefix [--seeds 1]   base to general SFT by P-tuning v2

Each prints a Markdown table: accuracy on domain and general tasks after the last stage, mean (lowest to
highest) over the seeds, and the seconds of training. Stages that lie in `--out` are not
trained again.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

from modes import spread

from sftbench.recipes.recipe import METHOD_OPTIONS, METHODS, Recipe, override
from sftbench.runs.events import format_duration
from sftbench.runs.folder import read_result

GENERAL_SFT = Path(__file__).parent / "general_sft.toml"
RATES = (0.2, 0.5, 1, 2, 5)  # times the advised rate


def table() -> list[dict]:
    """Mode 4 by each method."""
    return [{"mode": "4", "method": method} for method in METHODS]


def rates() -> list[dict]:
    """Mode 4 by each method at several times the rates that are advised for it."""
    from sftbench.training.prepare import prepare_recipe
    found = []
    for method, factor in itertools.product(METHODS, RATES):
        advised = prepare_recipe(override(Recipe(), mode="4", method=method)).recipe
        found.append({"mode": "4", "method": method, "learning_rate": factor * advised.learning_rate,
                      "cpt_learning_rate": factor * advised.cpt_learning_rate})
    return found


def prefix() -> list[dict]:
    """Base to general SFT: `full`, the advised prefix, and one thing changed at a time in it."""
    changes = [{}, *({"learning_rate": rate} for rate in (2e-3, 6e-3, 6e-2)),
               *({"num_virtual_tokens": length} for length in (5, 50)), {"prefix_init": "random"}]
    return [{"mode": str(GENERAL_SFT), "method": "full"}] + [
        {"mode": str(GENERAL_SFT), "method": "ptuning_v2", **change} for change in changes]


def shown(recipe: dict, name: str) -> str:
    """A resolved recipe's value for the table, or a dash where its method has no such option."""
    if any(name in options for options in METHOD_OPTIONS.values()) and (
            name not in METHOD_OPTIONS[recipe["method"]]):
        return "–"
    return f"{recipe[name]:.3g}" if isinstance(recipe[name], float) else str(recipe[name])


def main() -> None:
    """Run what is not there yet and print one line a recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=("table", "rates", "prefix"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    options = parser.parse_args()
    from sftbench.training.chain import run_chain
    recipes, began = globals()[options.which](), time.time()
    names = list(dict.fromkeys(name for values in recipes for name in values if name != "mode"))
    sys.stdout.write(f"| {' | '.join(names)} | trained | domain accuracy | general accuracy | seconds |\n"
                     + "|---" * (len(names) + 4) + "|\n")
    for number, values in enumerate(recipes):
        results = []
        for seed in range(options.seeds):
            label = "-".join(f"{value:.3g}" if isinstance(value, float) else Path(str(value)).stem
                             for value in values.values())
            recipe = override(Recipe(), **values, pocket_seed=seed,
                              output_dir=str(options.out / f"{options.which}-{label}-{seed}"))
            results.append(read_result(run_chain(recipe)))
        last = [result["stages"][-1] for result in results]
        cells = [shown(results[0]["recipe"], name) for name in names]
        cells.append(f"{last[0]['trainable_parameters']:,}")
        cells += [spread([stage["probes"][role]["accuracy"] for stage in last])
                  for role in ("domain_tasks", "general_tasks")]
        cells.append(spread([sum(stage["seconds"] for stage in result["stages"]) for result in results],
                            "{:.0f}"))
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        sys.stdout.flush()
        sys.stderr.write(f"{number + 1} of {len(recipes)}: {format_duration(time.time() - began)}\n")


if __name__ == "__main__":
    main()
