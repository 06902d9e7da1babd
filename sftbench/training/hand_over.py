"""What a stage leaves is what it trained: its own weights changed alone, and its files score as it did."""

import torch
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
