"""The first steps of every method on the pocket: losses and gradient norms as written in trajectories.json.

`python tests/test_trajectories.py` writes the file again, after a change that is meant to move them.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from sftbench.recipes.recipe import METHODS, Recipe, override  # noqa: E402
from sftbench.runs.events import read_events  # noqa: E402

FILE = Path(__file__).with_name("trajectories.json")
STEPS = 4


def trajectory(method: str, folder: Path) -> dict[str, list[float]]:
    """Losses (nats per token) and gradient norms of the first steps of mode 6 on the pocket."""
    from sftbench.training.chain import run_chain
    # without dropout, whose draws fall on other tokens as soon as rows are packed in another order
    run = run_chain(override(Recipe(), mode="6", method=method, max_steps=STEPS, probe_rows=2,
                             lora_dropout=0.0 if method in ("lora", "qlora") else None,
                             output_dir=str(folder / method)))
    steps = [event for event in read_events(run) if "loss" in event]
    return {name: [event[name] for event in steps] for name in ("loss", "grad_norm")}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_first_steps_are_as_they_were(method, tmp_path):
    expected = json.loads(FILE.read_text())[method]
    actual = trajectory(method, tmp_path)
    # other numbers of threads and other processors round sums otherwise
    assert actual["loss"] == pytest.approx(expected["loss"], rel=2e-3)
    assert actual["grad_norm"] == pytest.approx(expected["grad_norm"], rel=2e-2)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trajectories = {method: trajectory(method, Path(folder)) for method in METHODS}
    FILE.write_text(json.dumps(trajectories, indent=1) + "\n")
