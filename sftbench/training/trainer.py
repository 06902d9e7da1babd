"""The one training loop, TRL's: a model and a `StageContext` go in, `StageMetrics` come out.

It knows no mode, no picture and no folder of a run: what happens goes to `emit` as plain dicts.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from ..data.packing import block_tokens, count_steps
from ..data.tokenization import IGNORE_INDEX, EncodedRow
from ..distributed import broadcast, is_follower, is_sharded, process_count, wait_for_everyone
from ..errors import RunFailed, Stopped
from ..evaluation.probes import probe_losses
from ..models.architecture import gives_router_logits, keep_config
from ..models.logits import select_logits
from ..models.packing import holds_scores, make_collator
from ..models.threads import ThreadChooser, keep_threads
from ..recipes.stages import StageSettings
from ..runs.checkpoints import Checkpoints
from .hand_over import BestPoint, check_changes, sum_weights
from .memory import max_logits, read_memory, read_peak_memory, reset_peak_memory


@dataclass
class StageContext:
    """All that a stage's training needs beside the model.

    `dataset` has the stage's blocks in training order, `probes` the encoded rows that are scored while it
    trains, every `eval_steps` (None: eight times a stage), as `eval_<role>_loss`. With `checkpoints` training
    goes on from their latest, and stops when they request it. A `trial` ends after so many steps and seconds
    at least, and takes all threads. `tracker` is `tensorboard`, `trackio` or None; it writes beside the run
    in `run_folder`. `schedule` gives the share of the learning rate by step, from 0, in the recipe's stead.
    `best` chooses the point whose weights are the result.
    """

    name: str
    settings: StageSettings
    tokenizer: PreTrainedTokenizerBase
    dataset: Dataset
    emit: Callable[[dict], None]
    probes: dict[str, list[EncodedRow]] = field(default_factory=dict)
    eval_steps: int | None = None
    checkpoints: Checkpoints | None = None
    trial: tuple[int, float] | None = None
    tracker: str | None = None
    run_folder: Path = Path()
    schedule: Callable[[int], float] | None = None
    best: BestPoint | None = None


@dataclass
class StageMetrics:
    """What a stage's training measured: seconds, steps, tokens, losses in nats per token, bytes."""

    seconds: float
    steps: int
    tokens: int
    train_loss: float  # mean of the last tenth of the steps
    peak_memory_bytes: int
    start_loss: dict[str, float]  # of each probe before the first step
    gathered: dict[str, Any] | None = None  # under FSDP the complete weights, on rank 0
    best: dict[str, Any] | None = None  # role, step and loss of the point that was kept, if not the last


def count_warmup_steps(settings: StageSettings, steps: int) -> int:
    """Steps in which the rate rises; it is 0 in the first of them, so one alone would only cost it: none."""
    warmup = math.ceil(settings.warmup_ratio * steps)
    return warmup if warmup > 1 else 0


def eval_interval(steps: int, eval_steps: int | None) -> int:
    """The steps after which a stage's probes are scored: as the recipe states, or an eighth of the stage."""
    return eval_steps or max(1, steps // 8)


def _tokens_after(dataset: Dataset, settings: StageSettings, steps: int) -> list[int]:
    """How many tokens all processes have seen after each step, from step 0 on."""
    totals = np.concatenate([[0], np.cumsum(block_tokens(dataset))])
    blocks = np.arange(steps + 1) * settings.blocks_per_step * process_count()
    return totals[np.minimum(blocks, len(dataset))].tolist()


def make_sft_config(settings: StageSettings, folder: str, steps: int, **report) -> SFTConfig:
    """A stage's settings as TRL's configuration; `report` are its fields that name a tracker.

    The dataset holds all epochs in their order, so TRL sees one epoch and draws in sequence: mixing, seeds
    and resume are decided by data, not by a sampler.
    """
    return SFTConfig(
        output_dir=folder, num_train_epochs=1, train_sampling_strategy="sequential", max_steps=steps,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate, lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=count_warmup_steps(settings, steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm, seed=settings.seed,
        # TRL 1.16 switches both of these on by itself
        bf16=settings.bf16, activation_checkpointing=settings.gradient_checkpointing,
        use_cpu=not torch.cuda.is_available(), dataloader_pin_memory=False,
        # the blocks are encoded already: TRL prepares neither text beside tasks nor shares of tokens
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, max_length=None,
        # with the filter on, a step whose loss is no number is logged as the running mean (transformers 5.23)
        logging_steps=1, logging_nan_inf_filter=False, disable_tqdm=True,
        save_strategy="no", **{"report_to": "none"} | report)


def _make_tracker(context: StageContext) -> tuple[dict, list[TrainerCallback]]:
    """The configuration's fields, and callbacks, by which a tracker on this machine gets the figures."""
    run, stage = context.run_folder, context.name
    if context.tracker == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback
        return {}, [TensorBoardCallback(SummaryWriter(str(run / "tensorboard" / stage)))]
    if context.tracker == "trackio":
        return {"report_to": "trackio", "project": "sftbench", "run_name": f"{run.name}-{stage}",
                "trackio_space_id": None, "trackio_static_space_id": False}, []
    return {}, []


class StageTrainer(SFTTrainer):
    """TRL's trainer, with logits of the trained tokens alone, and all at once where they are not too many.

    TRL 1.16 takes them piece by piece, beside entropy and accuracy, and twice for the backward pass; on a CPU
    for the tokens that are not trained as well. The loss is the same: the sum over trained tokens by their
    count.
    """

    def create_scheduler(self, num_training_steps, optimizer=None):
        """The recipe's schedule, or the stage's own, which `train_stage` sets."""
        super().create_scheduler(num_training_steps, optimizer)
        if self.schedule:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.schedule)
        return self.lr_scheduler

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One batch forward and back, by the attention that is fastest here."""
        plain = holds_scores(inputs["input_ids"].shape[1], self.args.bf16)
        with sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext():
            return super().training_step(model, inputs, num_items_in_batch)

    def floating_point_ops(self, inputs):
        """None, since nobody reads them, and counting parameters takes a hundredth of the pocket's steps."""
        return 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss in nats per trained token, over all ranks' tokens where there are several."""
        labels = inputs["labels"].roll(-1, dims=1)
        trained = labels != IGNORE_INDEX  # never the last, since the first token of a row is no label
        size = int(trained.sum()) * self.model.config.get_text_config().vocab_size
        if self.aux_loss_enabled or return_outputs or size > max_logits():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        del inputs["labels"]
        logits = select_logits(model, trained, **inputs)
        count = len(logits) if num_items_in_batch is None else num_items_in_batch
        loss = cross_entropy(logits.float(), labels[trained], reduction="sum") / count
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
    """Emits every step, scores the probes' loss at intervals, stops on a loss that is no number.

    With checkpoints it also has them written when they are due, and the training stopped after any step when
    that was requested.
    """

    def __init__(self, context: StageContext, steps: int, start_loss: dict[str, float]):
        self.context, self.checkpoints, self.start_loss = context, context.checkpoints, start_loss
        self.stopped, self.tokens = False, _tokens_after(context.dataset, context.settings, steps)
        self.every = eval_interval(steps, context.eval_steps) if context.probes else 0
        before = self.checkpoints.progress if self.checkpoints else {}
        self.losses: list[float] = before.get("losses", [])
        self.peak_before = before.get("peak_memory", 0)
        self.began = time.monotonic() - before.get("seconds", 0)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, without the time in which the stage was stopped."""
        return time.monotonic() - self.began

    @property
    def peak_memory(self) -> int:
        """The peak of bytes in use, in the processes that trained the stage before it was stopped too."""
        return max(self.peak_before, read_peak_memory())

    def emit(self, step: int, losses: dict[str, float] | None = None, **values) -> None:
        """Emit an event of this stage, with its probes' losses where they were scored."""
        scores = {f"eval_{role}_loss": loss for role, loss in (losses or {}).items()}
        self.context.emit({"stage": self.context.name, "step": step, **values, **scores})

    def on_log(self, args, state, control, logs, **_):
        if "loss" not in logs:
            return
        step = state.global_step
        self.losses.append(logs["loss"])
        self.emit(step, loss=logs["loss"], learning_rate=logs["learning_rate"],
                  grad_norm=logs.get("grad_norm"), tokens=self.tokens[step], memory_bytes=read_memory())
        for name in ("loss", "grad_norm"):
            # a log comes before the save of its step, so nothing of this step is saved
            if logs.get(name) is not None and not math.isfinite(logs[name]):
                raise RunFailed(f"non-finite {name} at step {step} of stage {self.context.name}; nothing "
                                "from this step on was saved. Take a lower learning rate or a longer warm-up",
                                "non-finite")

    def on_step_end(self, args, state, control, model, **_):
        step, best, early = state.global_step, self.context.best, False
        ends = step >= state.max_steps
        if self.every and (best if ends else step % self.every == 0):
            losses = probe_losses(model, self.context.tokenizer, self.context.probes)
            if not ends:  # then all rows are scored
                self.emit(step, losses)
            early = best is not None and best.see(model, step, losses[best.role])
        if ends:
            return
        if trial := self.context.trial:
            early = step >= trial[0] and self.seconds > trial[1]
        control.should_training_stop = early
        if self.checkpoints:
            stop, due = broadcast((self.checkpoints.stop(), self.checkpoints.due(step)))
            self.stopped = stop and not early  # what has ended is not to be gone on with, nor saved for it
            control.should_training_stop, control.should_save = stop or early, (stop or due) and not early

    def on_save(self, args, state, control, **_):
        wait_for_everyone()  # each process writes a file of its own
        best = self.context.best
        if not is_follower():
            self.checkpoints.seal(state.global_step, {
                "losses": self.losses, "peak_memory": self.peak_memory, "seconds": round(self.seconds, 2),
                "start_loss": self.start_loss, **({"best": best.record()} if best else {})})

    def metrics(self, steps: int, best: dict | None) -> StageMetrics:
        """What was measured, once training has ended after so many steps, and the point that was kept."""
        tail = self.losses[-max(1, len(self.losses) // 10):]
        return StageMetrics(round(self.seconds, 2), steps, self.tokens[steps],
                            round(sum(tail) / len(tail), 5), self.peak_memory, self.start_loss, best=best)


def train_stage(model, context: StageContext) -> StageMetrics:
    """Train `model` in place and return what was measured.

    Raises RunFailed on a loss that is not finite or where nothing changed, and Stopped, with a checkpoint
    saved, where the context's checkpoints requested it.
    """
    settings, tokenizer, checkpoints = context.settings, context.tokenizer, context.checkpoints
    steps, resumed = count_steps(context.dataset, settings), checkpoints.latest if checkpoints else None
    # a model that is yet to be sharded is in main memory here, where scoring it would take too long
    start_loss = (checkpoints.progress["start_loss"] if resumed else
                  {} if is_sharded() else probe_losses(model, tokenizer, context.probes))
    callback = StageCallback(context, steps, start_loss)
    if not resumed:
        callback.emit(0, start_loss, steps=steps)
    reset_peak_memory()
    fields, trackers = _make_tracker(context)
    threads = [] if torch.cuda.is_available() or context.trial else [ThreadChooser(callback.tokens)]
    # balancing experts is for the router, which a prefix leaves alone; transformers 5.23 fails on both
    if settings.method == "ptuning_v2" or not gives_router_logits(model):
        fields["router_aux_loss_coef"] = 0.0
    with tempfile.TemporaryDirectory() as folder, keep_config(model):
        trainer = StageTrainer(
            model=model, processing_class=tokenizer, train_dataset=context.dataset,
            callbacks=[*threads, *trackers, callback],
            args=make_sft_config(
                settings, str(checkpoints.folder) if checkpoints else folder, steps, **fields),
            data_collator=make_collator(model, tokenizer.pad_token_id, settings.packing))
        trainer.schedule = context.schedule
        trainer.remove_callback(PrinterCallback)
        before = sum_weights(dict(model.named_parameters()))  # here, since TRL casts QLoRA's matrices
        with keep_threads():
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    model.__dict__.pop("forward", None)  # accelerate 1.15 leaves its autocast around the trained model
    if callback.stopped:
        raise Stopped(f"stopped after step {trainer.state.global_step} of {steps} of stage {context.name}")
    metrics = callback.metrics(trainer.state.global_step, context.best and context.best.restore(model))
    if is_sharded():
        metrics.gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    check_changes(model, before, context.name, metrics.gathered)
    return metrics
