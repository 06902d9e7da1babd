"""keep_best: a stage's result is the point of the lowest held-out loss, also after a stop."""

import json

import pytest
import torch
from transformers import set_seed

from sftbench.data.packing import rows_to_dataset
from sftbench.data.tokenization import encode_probe
from sftbench.errors import Stopped
from sftbench.models.loading import load_model
from sftbench.models.methods import METHOD_FUNCTIONS
from sftbench.recipes.recipe import Recipe, override
from sftbench.reports.ledger import format_ledger
from sftbench.runs.checkpoints import Checkpoints, stage_checkpoints
from sftbench.runs.events import read_events, stage_progress
from sftbench.runs.folder import read_result
from sftbench.training.chain import run_chain
from sftbench.training.hand_over import BestPoint
from sftbench.training.prepare import prepare_recipe
from sftbench.training.trainer import StageContext, train_stage
from tests.conftest import bad_input, run_failed, small_rows

STEPS = 12


@pytest.fixture
def model(make_model):
    return load_model(make_model())


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return all(torch.allclose(value, other[name], atol=1e-6) for name, value in one.items())


def test_the_weights_of_the_lowest_loss_come_back(model, tmp_path):
    best, seen = BestPoint("domain_tasks", None, tmp_path), []
    for step, loss in enumerate([3.0, 1.0, 2.0, 1.0], 1):
        with torch.no_grad():
            model.lm_head.weight.add_(step)
        seen.append(weights_of(model))
        assert best.see(model, step, loss) is False
    assert best.restore(model) == {"role": "domain_tasks", "step": 2, "loss": 1.0}
    assert same(weights_of(model), seen[1]) and not same(weights_of(model), seen[3])
    assert [path.name for path in tmp_path.iterdir()] == ["best-2.safetensors"], "an equal loss is not lower"


def test_patience_counts_scores_without_a_lower_loss(model, tmp_path):
    best = BestPoint("domain_tasks", 2, tmp_path)
    assert [best.see(model, step, loss) for step, loss in enumerate([3, 4, 2, 5, 6], 1)] == [
        False, False, False, False, True]


def test_what_checkpoints_name_stays_until_two_later_ones(model, tmp_path):
    best, there = BestPoint("domain_tasks", None, tmp_path), []
    for step in range(1, 6):
        best.see(model, step, 9.0 - step)
        if step in (1, 3, 4):
            recorded = best.record()
        there.append(sorted(int(path.stem[5:]) for path in tmp_path.iterdir()))
    assert there == [[1], [1, 2], [1, 3], [1, 3, 4], [3, 4, 5]]
    assert recorded == {"step": 4, "loss": 5.0, "waited": 0, "named": [3, 4]}
    again = BestPoint("domain_tasks", None, tmp_path, **recorded)
    again.see(model, 6, 1.0)
    assert sorted(int(path.stem[5:]) for path in tmp_path.iterdir()) == [3, 4, 6]


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b"torn")])
def test_damage_is_named(model, tmp_path, harm):
    best = BestPoint("domain_tasks", None, tmp_path)
    best.see(model, 1, 1.0)
    harm(tmp_path / "best-1.safetensors")
    with run_failed("damaged", match="best-1"):
        best.restore(model)


def contradict(rows: list[dict]) -> list[dict]:
    """The same questions with the next one's answer: whose form is learnt first, and then unlearnt."""
    return [{"messages": [row["messages"][0], other["messages"][1]]}
            for row, other in zip(rows, rows[1:] + rows[:1], strict=True)]


@pytest.fixture
def trained(make_model, tokenizer, settings, tmp_path):
    """A function that trains the small model on rows that get worse, from `kept`'s checkpoint if any."""
    def run(method: str = "full", kept: Checkpoints | None = None, seed: int = 0, patience: int | None = None,
            steps: int = STEPS, best: bool = True):
        options = settings(method, max_steps=steps, packing=False, learning_rate=2e-2 if method == "full" else
                           9e-2, lr_scheduler_type="constant_with_warmup", prefix_init="random")
        good = small_rows("domain_tasks", 24)
        bad = [{"messages": [row["messages"][0], {"role": "assistant", "content": "x y z"}]} for row in good]
        rows, _ = encode_probe(tokenizer, good + bad, 64)  # in this order: first the answers, then nonsense
        probe, _ = encode_probe(tokenizer, good[:12], 64)
        set_seed(seed)
        model = METHOD_FUNCTIONS[method](load_model(make_model()), tokenizer, options, "")
        events = []
        folder = kept.folder if kept else tmp_path / f"{method}-{seed}"

        def emit(event):
            events.append(event)
            if kept:
                kept.events.append(event)
        point = BestPoint("domain_tasks", patience, folder,
                          **(kept.progress.get("best", {}) if kept else {})) if best else None
        context = StageContext("sft", options, tokenizer, rows_to_dataset(rows), emit,
                               {"domain_tasks": probe}, 1, kept, best=point)
        return model, train_stage(model, context), events
    return run


def scores(events: list[dict]) -> dict[int, float]:
    return {event["step"]: event["eval_domain_tasks_loss"] for event in events
            if event["step"] and "eval_domain_tasks_loss" in event}


@pytest.mark.parametrize("method", ["full", "lora", "ptuning_v2"])
def test_a_stage_ends_with_the_weights_of_its_best_score(trained, method):
    model, metrics, events = trained(method)
    lowest = min(scores(events), key=scores(events).get)
    assert metrics.best["step"] == lowest < STEPS - 1, "the rows are to be such that it gets worse"
    assert metrics.best["loss"] == pytest.approx(scores(events)[lowest], abs=1e-5)
    assert metrics.steps == STEPS
    shorter, _, _ = trained(method, steps=lowest, best=False)  # the schedule is constant
    assert same(weights_of(model), weights_of(shorter))


def test_a_stage_ends_early_and_has_trained_fewer_tokens(trained):
    whole, complete, events = trained()
    model, metrics, fewer = trained(patience=2)
    lowest = min(scores(events), key=scores(events).get)
    assert metrics.steps == lowest + 2 < STEPS and metrics.best["step"] == lowest
    assert metrics.tokens < complete.tokens and same(weights_of(model), weights_of(whole))
    assert scores(fewer) == {step: loss for step, loss in scores(events).items() if step <= lowest + 2}


@pytest.mark.parametrize("after", [1, 3, 5])
def test_stopped_and_gone_on_is_as_never_stopped(trained, tmp_path, after):
    whole, figures, _ = trained(patience=3)
    events: list[dict] = []
    with stage_checkpoints(tmp_path, "key", tmp_path, None, lambda: len(scores(events)) >= after) as kept:
        kept.events = events
        with pytest.raises(Stopped):
            trained(kept=kept, patience=3)
        again = Checkpoints(kept.folder, None, lambda: False, [])
        again.resolve()
        assert again.progress["best"]["step"] is not None
        model, gone_on, _ = trained(kept=again, patience=3, seed=99)
    assert same(weights_of(model), weights_of(whole))
    assert (gone_on.best, gone_on.steps, gone_on.tokens) == (figures.best, figures.steps, figures.tokens)


def test_a_run_keeps_the_best_point_and_says_so(make_model, small_files, tmp_path):
    probe = tmp_path / "probe.jsonl"
    probe.write_text("".join(f"{json.dumps(row)}\n" for row in contradict(small_rows("domain_tasks"))))
    recipe = override(Recipe(), mode="1", model=make_model(), num_train_epochs=40.0, max_steps=30,
                      learning_rate=2e-2, keep_best="domain_tasks", early_stopping_patience=2, eval_steps=2,
                      domain_tasks_probe=str(probe), output_dir=str(tmp_path / "best"), **small_files)
    folder = run_chain(recipe)
    stage, = read_result(folder)["stages"]
    assert stage["best"]["role"] == "domain_tasks" and stage["steps"] == stage["best"]["step"] + 4 < 30
    assert stage_progress(read_events(folder), alive=False)[0]["state"] == "done"
    text = " ".join(format_ledger(folder).split())
    assert f"is as after step {stage['best']['step']} of {stage['steps']}, of 30 planned" in text
    assert not list((tmp_path / ".stages").rglob("best-*")), "only the model is stored"
    again, = read_result(run_chain(override(recipe, output_dir=str(tmp_path / "again"))))["stages"]
    assert again["reused"] and again["best"] == stage["best"]


def test_it_has_a_key_of_its_own_and_decides_all_that_it_depends_on(make_model, small_files):
    def key(**values):
        ready = prepare_recipe(override(Recipe(), mode="2", model=make_model(), max_steps=2, probe_rows=4,
                                        **small_files, **values))
        return ready.stages[0].key
    keys = [key(), key(keep_best="domain_text"), key(keep_best="domain_tasks"),
            key(keep_best="domain_text", early_stopping_patience=3),
            key(keep_best="domain_text", eval_steps=1)]
    assert len(set(keys)) == len(keys)
    assert key(eval_steps=1) == keys[0], "without it, when probes are scored decides nothing"
    with bad_input("keep_best"):
        prepare_recipe(override(Recipe(), mode="1", model=make_model(), keep_best="general_text",
                                domain_tasks=small_files["domain_tasks"]))
