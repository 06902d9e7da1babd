"""What a stage leaves is what it trained: its own weights changed alone, and its files score as it did.

It leaves its last step, or with `keep_best` the point at which a probe's loss was lowest (`BestPoint`).
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from ..data.tokenization import EncodedRow
from ..distributed import is_sharded
from ..errors import RunFailed
from ..evaluation.probes import probe_losses
from ..evaluation.yardstick import encode_texts
from ..models.checkpoint import ModelState
from ..models.loading import release_memory, select_device
from ..models.methods import compute_in_float32, trainable_parameters
from ..recipes.stages import Stage
from ..runs.checkpoints import KEPT_CHECKPOINTS

MAX_DIFFERENCE = {False: 1e-3, True: 1e-2}  # nats per token, without and with bfloat16

# One integer type for each size of a number, so that sums are over bits: exact, in any order, on any device.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CHUNK = 2**22  # numbers summed at once, since PyTorch 2.13 widens them in a copy


def sum_weights(weights: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, int]]:
    """The type of each weight, and the sum of its bits read as integers: another where any bit changed."""
    return {name: (weight.dtype, sum(int(part.sum(dtype=torch.int64)) for part in
                                     weight.detach().reshape(-1).view(BITS[weight.itemsize]).split(CHUNK)))
            for name, weight in weights.items()}


def check_changes(model, before: dict[str, tuple[torch.dtype, int]], stage: str,
                  gathered: dict[str, torch.Tensor] | None = None) -> None:
    """Raise RunFailed where training changed no parameter that trains, or one that is frozen.

    `before` are the sums before the first step. Of a sharded model only what rank 0 gathered is compared.
    """
    weights = (gathered or {}) if is_sharded() else dict(model.named_parameters())
    # a layer may take its frozen bias in another type (bitsandbytes 0.50), which is no change of its own
    after = {name: found for name, found in sum_weights(weights).items()
             if name in before and found[0] == before[name][0]}
    changed = {name for name, found in after.items() if found != before[name]}
    trained = trainable_parameters(model)
    if trained.keys() <= after.keys() and not changed & trained.keys():
        raise RunFailed(f"stage {stage} changed none of its {len(trained)} weights, so nothing was learnt; "
                        "take a higher learning rate, more steps (max_steps, epochs) or a shorter warm-up",
                        "unchanged")
    if other := sorted(changed - trained.keys()):
        raise RunFailed(f"stage {stage} changed {len(other)} frozen weights, such as {other[0]}, which its "
                        "method leaves alone; take another method for this model", "frozen")


@dataclass
class BestPoint:
    """The point of a stage at which a role's held-out loss was lowest, with its trained weights on disk.

    What transformers calls load_best_model_at_end, metric_for_best_model and early_stopping_patience, on the
    scores that the bench takes itself. The weights before the first step are no candidate. `step`, `loss`
    (nats per token), `waited` (scores since) and `named` (the steps that the last checkpoints name) go into
    each checkpoint, and a named file stays, so that a stage that was stopped chooses as one that never was.
    """

    role: str
    patience: int | None
    folder: Path
    step: int | None = None
    loss: float | None = None
    waited: int = 0
    named: list[int | None] = field(default_factory=list)

    def see(self, model, step: int, loss: float) -> bool:
        """Take a score in, and the weights where it is the lowest; returns whether the stage is to end."""
        if self.loss is None or loss < self.loss:
            self.step, self.loss, self.waited = step, loss, 0
            self._save(trained_weights(model))
        else:
            self.waited += 1
        return self.patience is not None and self.waited >= self.patience

    def _save(self, weights: dict[str, torch.nn.Parameter]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "best.tmp"
        save_file({name: weight.detach().to("cpu", copy=True).contiguous()
                   for name, weight in weights.items()}, temporary)
        os.replace(temporary, self._path(self.step))
        wanted = {self._path(step) for step in (*self.named, self.step)}
        for path in set(self.folder.glob("best-*.safetensors")) - wanted:
            path.unlink()

    def record(self) -> dict[str, Any]:
        """What a checkpoint that is written now is to have of it."""
        self.named = [*self.named, self.step][-KEPT_CHECKPOINTS:]
        return {name: getattr(self, name) for name in ("step", "loss", "waited", "named")}

    def restore(self, model) -> dict[str, Any]:
        """Put the best point's weights into the model; returns its `role`, `step` and `loss`.

        Raises RunFailed where their file is damaged.
        """
        try:
            stored = load_file(path := self._path(self.step))
        except (OSError, SafetensorError) as error:
            raise RunFailed(f"{path}, the stage's best point, cannot be read ({error}); remove {self.folder} "
                            "and run again", "damaged") from error
        with torch.no_grad():
            for name, weight in trained_weights(model).items():
                weight.copy_(stored[name])
        return {"role": self.role, "step": self.step, "loss": round(self.loss, 5)}

    def _path(self, step: int | None) -> Path:
        return self.folder / f"best-{step}.safetensors"


def trained_weights(model) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def score_trained(model, tokenizer: PreTrainedTokenizerBase,
                  probes: dict[str, list[EncodedRow]]) -> dict[str, float]:
    """The probes' losses by the trained model in memory, in nats per token.

    It computes in float32, as what is stored will: else rows differ by the noise of bfloat16, which hides
    a small loss and looks like one where a probe is short. QLoRA's weights stay quantised. A run none of
    whose probes fits scores the yardstick's first rows.
    """
    if is_sharded():  # gathered in main memory
        model = model.to(select_device())
    return probe_losses(compute_in_float32(model), tokenizer,
                        probes or {"yardstick": encode_texts(tokenizer)[:64]})


def check_stored(state: ModelState, stage: Stage, trained: dict[str, float],
                 probes: dict[str, list[EncodedRow]]) -> dict[str, float]:
    """How far each probe's loss by the stored model is from the trained one's, in nats per token.

    The model is loaded as any user loads it. Raises RunFailed where it cannot be, or differs by more than
    `MAX_DIFFERENCE`: for bfloat16 more, since a prefix trained on rounded weights is stored beside others.
    """
    try:
        losses = score_trained(state.load(), state.load_tokenizer(), probes)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunFailed(f"stage {stage.name} was trained, and what it wrote cannot be loaded ({error}); take "
                        "another method for this model", "hand-over") from error
    release_memory()
    differences = {role: round(loss - trained[role], 6) for role, loss in losses.items()}
    limit = MAX_DIFFERENCE[stage.settings.bf16]
    for role, difference in differences.items():
        if not abs(difference) <= limit:
            remedy = "set bf16 to false, or take " if stage.settings.bf16 else "take "
            raise RunFailed(f"stage {stage.name} was trained to {trained[role]:.4f} nats per token ({role}), "
                            f"but what it wrote scores {losses[role]:.4f}, over {limit:g} apart; {remedy}"
                            "another method for this model", "hand-over")
    return differences
