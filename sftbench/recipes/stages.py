"""A stage of a resolved recipe: its data by share, and every setting it is trained with."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from .recipe import METHOD_OPTIONS, OPTIONS, Recipe

# These fields of a recipe have a twin with the prefix `cpt_` that counts for CPT stages.
TWINS = ("method", "learning_rate", "warmup_ratio", "num_train_epochs", "per_device_train_batch_size")


@dataclass(frozen=True)
class StageSettings:
    """What one stage is trained with, by TRL's names; options of other methods than its own are None."""

    method: str
    learning_rate: float
    warmup_ratio: float
    num_train_epochs: float
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    max_steps: int | None
    max_length: int
    packing: bool
    lr_scheduler_type: str
    weight_decay: float
    max_grad_norm: float
    bf16: bool
    gradient_checkpointing: bool
    seed: int
    lora_r: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float | None = None
    lora_target_modules: str | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    bnb_4bit_quant_type: str | None = None
    bnb_4bit_use_double_quant: bool | None = None
    bnb_4bit_compute_dtype: str | None = None
    num_virtual_tokens: int | None = None
    prefix_init: str | None = None
    prefix_init_text: str | None = None
    trainable_parts: str | None = None

    @property
    def blocks_per_step(self) -> int:
        """Blocks that one process reads before the optimiser steps."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def for_key(self) -> dict[str, Any]:
        """The settings that decide what a stage of this method learns, for its key."""
        return {name: getattr(self, name) for name in _setting_names(self.method)}


@dataclass(frozen=True)
class Stage:
    """One training of a run; `shares` are parts of its tokens by role, `key` names it in the store."""

    name: str
    kind: str  # cpt or sft
    shares: dict[str, float]
    settings: StageSettings
    key: str = ""


def _setting_names(method: str) -> list[str]:
    """The settings that a stage of this method uses."""
    return [field.name for field in dataclasses.fields(StageSettings)
            if field.name not in OPTIONS or field.name in METHOD_OPTIONS[method]]


def stage_settings(recipe: Recipe, kind: str) -> StageSettings:
    """What stages of this kind (`cpt`, `sft`) of a resolved recipe are trained with."""
    prefix = "cpt_" if kind == "cpt" else ""
    method = getattr(recipe, prefix + "method")
    values = {name: getattr(recipe, prefix + name if name in TWINS else name)
              for name in _setting_names(method)}
    if method == "ptuning_v2":  # the prefix takes the cache's place
        values["packing"] = values["gradient_checkpointing"] = False
    return StageSettings(**values)
