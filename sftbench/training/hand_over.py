"""What a stage leaves is what it trained: its own weights changed alone, and its files score as it did."""

import torch

from ..distributed import is_sharded
from ..errors import RunFailed
from ..models.methods import trainable_parameters

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
