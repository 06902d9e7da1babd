"""Stop and go on inside a stage: nothing lost, nothing trained twice, and only whole checkpoints count."""

import pytest
import torch
from transformers import set_seed

from sftbench.data.packing import rows_to_dataset
from sftbench.data.tokenization import encode_probe
from sftbench.errors import Stopped
from sftbench.models.loading import load_model, make_bnb_config
from sftbench.models.methods import METHOD_FUNCTIONS
from sftbench.recipes.recipe import METHODS
from sftbench.runs.checkpoints import Checkpoints, stage_checkpoints
from sftbench.runs.stage_store import PARTIAL
from sftbench.training.trainer import StageContext, train_stage
from tests.conftest import small_rows

STEPS = 6


@pytest.fixture
def trained(make_model, tokenizer, settings):
    """A function that trains the small model, from `kept`'s checkpoint if it has one."""
    def run(method: str, kept: Checkpoints | None, seed: int = 0, **values):
        options = settings(method, max_steps=STEPS, gradient_accumulation_steps=2, packing=False,
                           lora_dropout=0.2, trainable_parts="last:1,new_blocks:1,new_head", **values)
        rows, _ = encode_probe(tokenizer, small_rows("domain_tasks", 120), 64)
        probe, _ = encode_probe(tokenizer, small_rows("domain_text", 6), 64)
        folder = make_model()
        set_seed(seed)
        quantised = make_bnb_config(options) if method == "qlora" else None
        model = METHOD_FUNCTIONS[method](load_model(folder, quantization=quantised), tokenizer, options,
                                        "Where is item 1?")
        told = []

        def emit(event):
            told.append(event)
            if kept:
                kept.events.append(event)
        dataset = rows_to_dataset(rows)
        figures = train_stage(model, StageContext("sft", options, tokenizer, dataset, emit,
                                                  {"domain_text": probe}, 2, kept))
        return model, figures, told
    return run


def losses(events: list[dict]) -> list[float]:
    return [event["loss"] for event in events if "loss" in event]


@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_gone_on_is_as_never_stopped(trained, tmp_path, method):
    whole, figures, told = trained(method, None)
    events: list[dict] = []
    with stage_checkpoints(tmp_path, "key", tmp_path, None, lambda: len(losses(events)) >= 2) as kept:
        kept.events = events
        with pytest.raises(Stopped, match="after step 3 of 6"):
            trained(method, kept)
        assert [path.name for path in kept.folder.glob("checkpoint-*")] == ["checkpoint-3"]
        again = Checkpoints(kept.folder, None, lambda: False, [])
        assert again.resolve() == [] and again.progress["step"] == 3
        assert losses(again.progress["events"]) == losses(told)[:3]
        # another seed: whatever the new process draws must not matter
        model, gone_on, more = trained(method, again, seed=99)
    assert losses(more) == pytest.approx(losses(told)[3:], abs=1e-6)
    rates = [[event["learning_rate"] for event in part if "loss" in event] for part in (told[-4:], more)]
    assert rates[0][-3:] == rates[1]
    for (name, value), other in zip(whole.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.allclose(value.float(), other.float(), atol=1e-6), name
    for name in ("steps", "tokens", "train_loss", "start_loss"):
        assert getattr(figures, name) == getattr(gone_on, name)
    assert not (tmp_path / PARTIAL / "key").exists()
