"""A learning-rate range test: some steps with a rising rate, from a fresh start, say which rate to take.

As L. Smith has it (arXiv:1506.01186), with the exponential rise, the smoothing and the end of fastai's
`lr_find`.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from datasets import Dataset
from transformers import set_seed

from ..distributed import process_count
from ..errors import BadInput, RunFailed
from ..models.loading import load_for_training, release_memory
from ..models.methods import METHOD_FUNCTIONS
from ..recipes.facts import Facts
from ..recipes.recipe import Recipe
from ..recipes.rules import Advice, advise
from ..recipes.stages import Stage
from ..reports.plots import rates_figure
from ..runs.folder import write_json
from ..training.chain import prefix_text
from ..training.prepare import PreparedRun, advise_recipe, prepare_recipe, stage_dataset
from ..training.trainer import StageContext, train_stage

STEPS = 80
RANGE = 100  # the test goes from so many times below the advised rate to so many times above it
# The rate to take is so many times below that of the lowest smoothed loss (fastai's rule). Beside the sweeps
# of docs/advice.md it is 0.3 to 5 times the best rate; a tenth of where the loss diverges, up to 10 times.
BACK = 10
SMOOTHING = 0.9  # weight of the smoothed loss against a step's own: a step has few rows
DIVERGED = 4  # times its lowest value: the smoothed loss has diverged, and no more is learnt from the test
SETTLED = 10  # steps before which the smoothed loss is of too few to judge by


@dataclass(frozen=True)
class RangeTest:
    """What a test of one kind of stage saw: by step the rate, the loss and the smoothed one (nats per token).

    `chosen` is the rate to take; None where the loss never fell.
    """

    kind: str  # cpt or sft
    method: str
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    diverged: bool
    chosen: float | None


def smooth_losses(losses: list[float]) -> list[float]:
    """The running mean of losses, freed of its bias towards the first ones."""
    mean, smoothed = 0.0, []
    for count, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed.append(mean / (1 - SMOOTHING ** count))
    return smoothed


def has_diverged(losses: list[float]) -> bool:
    """Whether the last loss is no number, or the smoothed one is far above where it was."""
    settled = smooth_losses(losses)[SETTLED - 1:]
    return not math.isfinite(losses[-1]) or bool(settled) and settled[-1] > DIVERGED * min(settled)


def choose_rate(rates: list[float], losses: list[float]) -> float | None:
    """A tenth of the rate at which the loss is lowest, smoothed; None where it never falls."""
    smoothed = smooth_losses(losses)
    lowest = smoothed.index(min(smoothed))
    return float(f"{rates[lowest] / BACK:.2g}") if lowest else None


def _enough_blocks(ready: PreparedRun, stage: Stage) -> Dataset:
    """The stage's blocks in their order, read as often as the test's steps want."""
    dataset = ready.datasets[stage.name][0]  # of all passes, however few steps the recipe takes
    steps = len(dataset) // stage.settings.blocks_per_step
    if steps >= STEPS:
        return dataset
    passes = math.ceil(stage.settings.num_train_epochs) * math.ceil(STEPS / max(steps, 1))
    longer = replace(stage.settings, num_train_epochs=float(passes))
    return stage_dataset(ready, replace(stage, settings=longer))[0]


def rise_rate(ready: PreparedRun, stage: Stage) -> RangeTest:
    """Train a fresh start model on a stage's data by its method, at a rate that rises from step to step."""
    low, high = stage.settings.learning_rate / RANGE, stage.settings.learning_rate * RANGE
    rates = [low * (high / low) ** (step / (STEPS - 1)) for step in range(STEPS)]
    settings = replace(stage.settings, learning_rate=high, max_steps=STEPS)
    losses: list[float] = []

    def record(event: dict) -> None:
        if "loss" in event:
            losses.append(event["loss"])
            if has_diverged(losses):
                raise RunFailed("the range test has seen enough", "non-finite")

    set_seed(settings.seed)
    model = load_for_training(ready.start, ready.recipe.model_revision, settings)
    model = METHOD_FUNCTIONS[settings.method](model, ready.tokenizer, settings, prefix_text(ready, stage))
    try:
        train_stage(model, StageContext(
            "range test", settings, ready.tokenizer, _enough_blocks(ready, stage), record,
            schedule=lambda step: rates[min(step, STEPS - 1)] / high))
    except RunFailed as error:
        if error.reason != "non-finite":
            raise
        if not has_diverged(losses):  # the gradient did, in the step of the last loss
            losses[-1] = math.inf
    del model
    release_memory()
    chosen, diverged = choose_rate(rates, losses), has_diverged(losses)
    losses = [loss for loss in losses if math.isfinite(loss)]
    return RangeTest(stage.kind, settings.method, tuple(rates[:len(losses)]), tuple(losses),
                     tuple(smooth_losses(losses)), diverged, chosen)


def measure_rates(recipe: Recipe | PreparedRun, folder: Path) -> list[RangeTest]:
    """Test each kind of stage of the recipe's mode; the curves are kept as `rates.json` and `rates.png`.

    Each starts from the mode's start model: what an earlier stage would have made of it is not known yet.
    """
    _check_folder(folder)
    ready = recipe if isinstance(recipe, PreparedRun) else prepare_recipe(recipe)
    stages = {stage.kind: stage for stage in reversed(ready.stages)}
    tests = [rise_rate(ready, stage) for stage in reversed(stages.values())]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "rates.json", {"start": ready.start, "tests": [asdict(test) for test in tests]})
    rates_figure([asdict(test) for test in tests]).savefig(folder / "rates.png")
    return tests


def _check_folder(folder: Path) -> None:
    if process_count() > 1:
        raise BadInput("a range test is of one process, and here are several; start it without torchrun",
                       field="--measure")
    if any((folder / name).exists() for name in ("rates.json", "recipe.json")):
        raise BadInput(f"{folder}: a range test or a run is there already; name a new folder",
                       field="output_dir", where=str(folder))


def advise_measured(recipe: Recipe, stated: dict, folder: Path, with_losses: bool = True,
                    settle_mode: bool = False) -> Advice:
    """As `advise_recipe`, with learning rates from range tests of the mode's stages, kept in `folder`.

    Raises BadInput where the mode lacks data, since the test trains on it, and where `folder` has a test.
    """
    _check_folder(folder)
    advice = advise_recipe(recipe, stated, with_losses, settle_mode)
    tests = measure_rates(advice.recipe, folder)
    return advise(advice.recipe, add_tests(advice.facts, tests))


def add_tests(facts: Facts, tests: list[RangeTest]) -> Facts:
    """The facts with the rates that tests chose."""
    return facts.add("measured", tested_rates={f"{test.kind} {test.method}": test.chosen for test in tests
                                               if test.chosen})
