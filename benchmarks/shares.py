"""Where a run's time goes: training, scores, forecast, picture and events.

    python benchmarks/shares.py MODEL DATA [STEPS]

One LoRA run of mode 6 on MODEL (a folder) and DATA (questions and answers), as `run` does it; without STEPS
for about five minutes. Prints one line of JSON: seconds by part, with the picture drawn as often as a
notebook draws it.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from functools import wraps
from pathlib import Path

from IPython.core.interactiveshell import InteractiveShell

from sftbench.recipes.recipe import Recipe, override
from sftbench.reports.progress import LivePlot
from sftbench.runs.events import RunLog, read_events
from sftbench.runs.folder import store_folder
from sftbench.training import chain, trainer

STEPS = 240


def timed(owner, name: str, part: str, seconds: Counter) -> None:
    """Let the calls of a function count as this part."""
    function = getattr(owner, name)

    @wraps(function)
    def measured(*args, **options):
        began = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            seconds[part] += time.perf_counter() - began

    setattr(owner, name, measured)


def main(model: str, data: str, steps: str = str(STEPS)) -> None:
    """Train, and print what took how long."""
    seconds = Counter()
    timed(chain, "forecast_recipe", "forecast", seconds)
    timed(trainer, "probe_losses", "scores while it trains", seconds)
    timed(RunLog, "__call__", "picture and events", seconds)
    timed(chain, "_score_state", "scores between stages", seconds)
    timed(chain, "_score_prompt_alone", "start", seconds)
    InteractiveShell.instance()  # which shows pictures
    with tempfile.TemporaryDirectory(prefix="shares-") as folder:
        run = Path(folder) / "run"
        ready = chain.prepare_recipe(override(
            Recipe(), mode="6", chat_model=model, domain_tasks=data, method="lora", num_train_epochs=99,
            max_steps=int(steps), output_dir=str(run)))
        began = time.perf_counter()
        ready.probes.answer(ready.start_state(store_folder(run)))
        start = time.perf_counter() - began  # the store has these answers from now on
        chain.run_chain(ready, [LivePlot()])
        total = time.perf_counter() - began
        count = sum("loss" in event for event in read_events(run))
    start += seconds.pop("start")
    sys.stdout.write(json.dumps(seconds | {
        "steps": count, "probe_rows": sum(map(len, ready.probes.rows.values())), "start": start,
        "seconds": total - start}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
