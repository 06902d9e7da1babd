"""The one training loop, TRL's: a model, blocks of tokens and a stage's settings go in, numbers come out.

It knows no mode, no picture and no folder of a run: what happens is told to `emit` as plain dicts.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from ..data.packing import block_tokens, collate_batch
from ..data.tokenization import IGNORE_INDEX, EncodedRow
from ..distributed import broadcast, is_follower, is_sharded, process_count, wait_for_everyone
from ..errors import RunFailed, Stopped
from ..evaluation.probes import limit_threads, mean_loss
from ..runs.checkpoints import Checkpoints
from .memory import MAX_WHOLE_LOGITS, read_memory, read_peak_memory, reset_peak_memory

Emit = Callable[[dict], None]


def count_steps(dataset: Dataset, settings: dict) -> int:
    """Optimiser steps of a stage: its blocks by batch, processes and accumulation, at most `max_steps`."""
    batches = math.ceil(len(dataset) / settings["per_device_train_batch_size"] / process_count())
    steps = math.ceil(batches / settings["gradient_accumulation_steps"])
    return min(steps, settings["max_steps"] or steps)


def _tokens_after(dataset: Dataset, settings: dict, steps: int) -> list[int]:
    """How many tokens all processes have seen after each step, from step 0 on."""
    per_step = (settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
                * process_count())
    totals = np.concatenate([[0], np.cumsum(block_tokens(dataset))])
    return totals[np.minimum(np.arange(steps + 1) * per_step, len(dataset))].tolist()


def make_sft_config(settings: dict, folder: str, steps: int, **report) -> SFTConfig:
    """A stage's settings as TRL's configuration; `report` are its fields that name a tracker.

    The dataset holds all epochs in their order, so TRL sees one epoch and draws in sequence. Checkpointing
    and bf16 are set in any case, since TRL switches both on by itself.
    """
    return SFTConfig(
        output_dir=folder, num_train_epochs=1, train_sampling_strategy="sequential",
        max_steps=steps,
        per_device_train_batch_size=settings["per_device_train_batch_size"],
        gradient_accumulation_steps=settings["gradient_accumulation_steps"],
        learning_rate=settings["learning_rate"], lr_scheduler_type=settings["lr_scheduler_type"],
        warmup_steps=settings["warmup_ratio"], weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"], bf16=settings["bf16"], seed=settings["seed"],
        activation_checkpointing=settings["gradient_checkpointing"], use_cpu=not torch.cuda.is_available(),
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, max_length=None,
        dataloader_pin_memory=False,
        logging_steps=1, logging_nan_inf_filter=False, disable_tqdm=True,
        # balancing experts is for the router, which a prefix leaves as it is; transformers 5.23 fails on both
        router_aux_loss_coef=0.0 if settings["method"] == "ptuning_v2" else None,
        save_strategy="no", **{"report_to": "none"} | report)


def _tracker(report_to: str | None, run: Path, stage: str) -> tuple[dict, list]:
    """The configuration's fields, and callbacks, by which a tracker on this machine gets the figures."""
    if report_to == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback
        return {}, [TensorBoardCallback(SummaryWriter(str(run / "tensorboard" / stage)))]
    if report_to == "trackio":
        return {"report_to": "trackio", "project": "sftbench", "run_name": f"{run.name}-{stage}",
                "trackio_space_id": None, "trackio_static_space_id": False}, []
    return {}, []


@contextlib.contextmanager
def keep_router_config(model):
    """Undo what TRL 1.16 writes into a mixture's configuration: it would be saved with the model."""
    config = model.config.get_text_config()
    before = {name: getattr(config, name) for name in ("output_router_logits", "router_aux_loss_coef")
              if hasattr(config, name)}
    yield
    for name, value in before.items():
        setattr(config, name, value)


class StageTrainer(SFTTrainer):
    """TRL's trainer; where the logits are few, its loss is taken from all of them at once.

    TRL 1.16 always takes it piece by piece, beside entropy and accuracy: right for large vocabularies, and an
    eighth of the step for small ones. The loss is the same: the sum over trained tokens by their count.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss in nats per trained token, over all ranks' tokens where there are several."""
        size = inputs["input_ids"].numel() * self.model.config.get_text_config().vocab_size
        if self.aux_loss_enabled or return_outputs or size > MAX_WHOLE_LOGITS:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")[:, 1:].flatten()
        logits = model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        count = (labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
        loss = cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum") / count
        return loss * (self.accelerator.num_processes if num_items_in_batch is not None else 1)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        # TRL 1.16 trains QLoRA's matrices in bfloat16, PEFT 0.21 loads them as float32: then they would round
        # otherwise than before the stop
        types = {name: parameter.dtype for name, parameter in self.model.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, parameter in self.model.named_parameters():
            if parameter.dtype != types[name]:
                parameter.data = parameter.data.to(types[name])


class StageCallback(TrainerCallback):
    """Tells every step to `emit`, scores the probes' loss at intervals, stops on a loss that is no number.

    With `checkpoints` it also has them written when they are due, and the training stopped after any step
    when that was asked for.
    """

    def __init__(self, stage: str, emit: Emit, tokens: list[int], score: Callable[[object], dict],
                 every: int, checkpoints: Checkpoints | None, start_loss: dict):
        self.stage, self.emit, self.tokens, self.score, self.every = stage, emit, tokens, score, every
        self.checkpoints, self.start_loss, self.stopped = checkpoints, start_loss, False
        before = checkpoints.progress if checkpoints else {}
        self.losses: list[float] = before.get("losses", [])
        self.peak_memory = before.get("peak_memory", 0)
        self.began = time.monotonic() - before.get("seconds", 0)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, without the time a stopped stage lay still."""
        return time.monotonic() - self.began

    def on_log(self, args, state, control, logs, **_):
        if "loss" not in logs:
            return
        step = state.global_step
        self.losses.append(logs["loss"])
        self.peak_memory = max(self.peak_memory, read_peak_memory())
        event = {"stage": self.stage, "step": step, "loss": logs["loss"],
                 "learning_rate": logs["learning_rate"], "grad_norm": logs.get("grad_norm"),
                 "tokens": self.tokens[step], "memory_bytes": read_memory()}
        self.emit(event)
        for name in ("loss", "grad_norm"):
            # a log comes before the save of its step, so nothing of this step is kept
            if event[name] is not None and not math.isfinite(event[name]):
                raise RunFailed(f"non-finite {name} at step {step} of stage {self.stage}; nothing from this "
                                "step on was kept. Take a lower learning rate or a longer warm-up",
                                "non-finite")

    def on_step_end(self, args, state, control, model, **_):
        if state.global_step >= state.max_steps:
            return
        if self.every and state.global_step % self.every == 0:
            self.emit({"stage": self.stage, "step": state.global_step, **self.score(model)})
        if self.checkpoints:
            stop, due = broadcast((self.checkpoints.stop(), self.checkpoints.due(state.global_step)))
            self.stopped = control.should_training_stop = stop
            control.should_save = stop or due

    def on_save(self, args, state, control, **_):
        wait_for_everyone()  # each process writes a file of its own
        if not is_follower():
            self.checkpoints.seal(state.global_step, {
                "losses": self.losses, "peak_memory": self.peak_memory, "seconds": round(self.seconds, 2),
                "start_loss": self.start_loss})


def train_stage(
    model,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    settings: dict,
    stage: str,
    emit: Emit,
    probes: dict[str, list[EncodedRow]],
    eval_steps: int | None = None,
    checkpoints: Checkpoints | None = None,
    report: tuple[str | None, Path] = (None, Path()),
) -> dict:
    """Train `model` in place on `dataset` (of `blocks.to_dataset`) and return the stage's figures.

    `probes` are scored every `eval_steps` (None: eight times) as `eval_<role>_loss`. With `checkpoints` it
    goes on from the one they found, if any. Returns seconds, steps, tokens, train_loss (mean of the last
    tenth of the steps, nats per token), start_loss of each probe before the first step, and
    peak_memory_bytes. Raises RunFailed on a loss that is not finite, and Stopped, with a checkpoint saved,
    where `checkpoints.stop` asked for it. Under FSDP `gathered` holds the whole state on rank 0. `report`
    names a tracker and the run's folder.
    """
    steps, pad = count_steps(dataset, settings), tokenizer.pad_token_id
    accumulated, tokens = settings["gradient_accumulation_steps"], _tokens_after(dataset, settings, steps)

    def score(model) -> dict:
        return {f"eval_{role}_loss": mean_loss(model, rows, pad) for role, rows in probes.items()}

    resumed = checkpoints.found if checkpoints else None
    # a model that is yet to be sharded lies in main memory here, where scoring it would take too long
    start_loss = (checkpoints.progress["start_loss"] if resumed else
                  {} if is_sharded() else score(model))
    if not resumed:
        emit({"stage": stage, "step": 0, "steps": steps, **start_loss})
    reset_peak_memory()
    fields, trackers = _tracker(*report, stage)
    with tempfile.TemporaryDirectory() as folder, keep_router_config(model):
        trainer = StageTrainer(
            model=model, args=make_sft_config(
                settings, str(checkpoints.folder) if checkpoints else folder, steps, **fields),
            train_dataset=dataset, processing_class=tokenizer,
            data_collator=lambda examples: collate_batch(examples, pad, settings["packing"]))
        every = (eval_steps or max(1, steps // 8)) if probes else 0
        reporter = StageCallback(stage, emit, tokens, score, every, checkpoints, start_loss)
        trainer.remove_callback(PrinterCallback)
        for callback in (*trackers, reporter):
            trainer.add_callback(callback)
        with limit_threads(model.num_parameters() * tokens[-1] / (steps * accumulated)):
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if reporter.stopped:
        raise Stopped(f"stopped after step {trainer.state.global_step} of {steps} of stage {stage}")
    tail = reporter.losses[-max(1, len(reporter.losses) // 10):]
    whole = {"gathered": trainer.accelerator.get_state_dict(trainer.model_wrapped)} if is_sharded() else {}
    return whole | {"seconds": round(reporter.seconds, 2), "steps": trainer.state.global_step,
            "tokens": tokens[-1], "train_loss": round(sum(tail) / len(tail), 5),
            "peak_memory_bytes": reporter.peak_memory,
            "start_loss": {name.removeprefix("eval_").removesuffix("_loss"): value
                           for name, value in start_loss.items()}}
