"""Logits only where they are needed: the output layer is most of a small model with a large vocabulary."""

import torch


def select_logits(model, positions: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """The logits (selected tokens × vocabulary) that follow each token where the mask `positions` is true.

    `positions` (sequences × tokens) has the shape of `input_ids`. The output layer is handed these tokens
    alone, within the model, so whatever a family does to logits (a soft cap, a scale) is done to them.
    """
    selected = False

    def select(layer, arguments):
        nonlocal selected
        if selected := arguments[0].shape[:2] == positions.shape:
            return arguments[0][positions][None], *arguments[1:]

    hook = getattr(model, "module", model).get_output_embeddings().register_forward_pre_hook(select)
    try:
        logits = model(**{"use_cache": False} | inputs).logits
    finally:
        hook.remove()
    return logits[0] if selected else logits[positions]
