"""What the workbench costs: seconds to a form, from Start to the first point, and of drawing beside training.

    python benchmarks/form.py [--pairs 3] [--steps 300]

Without a browser: the form, its thread and its pictures are the same, only nothing is painted. Each pair of
runs trains the same recipe in fresh folders, once followed by the form and once alone, in turn.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from sftbench.recipes.recipe import Recipe, override
from sftbench.runs.events import EventTail, read_events
from sftbench.workbench.form import Form
from sftbench.workers.client import run_state, start_run


def seconds_to_form() -> float:
    """Import and build, in a fresh process: the kernel's share of opening the notebook."""
    code = "import time; t = time.time(); import sftbench; sftbench.form(); print(time.time() - t)"
    return min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                    check=True).stdout) for _ in range(3))


def wait(holds, seconds: float = 300):
    """The first true value of `holds()`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := holds():
            return found
        time.sleep(0.02)
    raise TimeoutError


def train(steps: int, followed: bool) -> dict:
    """One run in a fresh folder from a process that was started ahead; its times in seconds."""
    os.environ["SFTBENCH_RUNS"] = tempfile.mkdtemp(prefix="sftbench-form-")
    form = Form(override(Recipe(), mode="1", max_steps=steps, probe_rows=16, eval_steps=steps))
    form.load_ahead().join(120)
    form.helper.ask({"do": "nothing"})  # is refused once its libraries are loaded
    step, began = form.parts["train"], time.monotonic()
    if followed:
        step.start()
        folder = wait(lambda: step.folder)
    else:
        folder = start_run(form.recipe, form.helper)
    tail, first = EventTail(folder), None
    wait(lambda: tail.read() is not None and any("loss" in event for event in tail.events))
    first = time.monotonic() - began
    drawn = wait(lambda: step.picture.value) and time.monotonic() - began if followed else None
    wait(lambda: not run_state(folder)["alive"])
    form.close()
    steps_seen = [event["time"] for event in read_events(folder) if "loss" in event]
    return {"first": first, "drawn": drawn, "training": steps_seen[-1] - steps_seen[0]}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    say = sys.stdout.write
    say(f"import and form: {seconds_to_form():.2f} s\n")
    ratios = []
    for _ in range(options.pairs):
        with_form, alone = train(options.steps, True), train(options.steps, False)
        ratios.append(with_form["training"] / alone["training"])
        say(f"Start to first loss {with_form['first']:.1f} s, to first picture {with_form['drawn']:.1f} s; "
            f"{options.steps} steps followed {with_form['training']:.2f} s, "
            f"alone {alone['training']:.2f} s\n")
    say(f"followed / alone: median {statistics.median(ratios):.3f} of {options.pairs} pairs\n")


if __name__ == "__main__":
    main()
