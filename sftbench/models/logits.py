"""A model's logits: only where they are needed, and of rows that share a block.

The output layer is most of a small model with a large vocabulary.
"""

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
        logits = all_logits(model, **inputs)
    finally:
        hook.remove()
    return logits[0] if selected else logits[positions]


def all_logits(model, position_ids: torch.Tensor | None = None, **inputs: torch.Tensor) -> torch.Tensor:
    """The logits of every token (sequences × tokens × vocabulary).

    `position_ids` that start at 0 again and again tell the rows of a sequence apart. Behind a prefix PEFT
    (0.21) drops them, so there the model gets a mask in which each row sees the prefix and itself.
    """
    inputs = {"use_cache": False} | inputs
    if position_ids is None:
        return model(**inputs).logits
    wrapper = getattr(model, "module", model)
    if (prefix := prefix_length(wrapper)) is None:
        return model(**inputs, position_ids=position_ids).logits
    rows, places = (position_ids == 0).cumsum(1), torch.arange(position_ids.shape[1], device=model.device)
    seen = (rows[:, :, None] == rows[:, None]) & (places[:, None] >= places)
    given = {"attention_mask": torch.cat([seen.new_ones(*rows.shape, prefix), seen], dim=2)[:, None],
             "position_ids": position_ids + prefix}
    hook = wrapper.get_base_model().register_forward_pre_hook(
        lambda base, positional, named: (positional, named | given), with_kwargs=True)
    try:
        return model(**inputs).logits
    finally:
        hook.remove()


def prefix_length(model) -> int | None:
    """The tokens of the prefix that PEFT has put before a model; None without one."""
    config = model.active_peft_config if hasattr(model, "active_peft_config") else None
    return config.num_virtual_tokens if getattr(config, "is_prompt_learning", False) else None
