"""A stage of a resolved recipe: its data by share, and every setting it is trained with."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from .facts import Facts
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


def stage_field(name: str, kind: str) -> str:
    """The recipe's field that holds a setting for stages of this kind (`cpt`, `sft`)."""
    return f"cpt_{name}" if kind == "cpt" and name in TWINS else name


def stage_settings(recipe: Recipe, kind: str) -> StageSettings:
    """What stages of this kind (`cpt`, `sft`) of a resolved recipe are trained with."""
    method = getattr(recipe, stage_field("method", kind))
    values = {name: getattr(recipe, stage_field(name, kind))
              for name in _setting_names(method)}
    if method == "ptuning_v2":  # the prefix takes the cache's place
        values["packing"] = values["gradient_checkpointing"] = False
    return StageSettings(**values)


def derived_settings(full: Recipe, facts: Facts) -> dict[str, str]:
    """What follows from method, model and device without being a recipe's field: by name, `… because …`."""
    derived = {"attn_implementation": "eager because transformers has no sdpa for this family"
               if facts.attention == "eager" else "sdpa because transformers has it for this family"}
    methods = {full.method, full.cpt_method}
    if methods == {"qlora"}:
        derived["weights"] = f"4 bit, computed with in {full.bnb_4bit_compute_dtype}, because that is QLoRA"
    elif not full.bf16:
        derived["weights"] = "float32 because bf16 is off"
    else:
        adapted = methods & {"lora", "qlora", "ptuning_v2"}
        derived["weights"] = ("bfloat16 because they are frozen beside what trains" if adapted == methods else
                              "float32, computed with in bfloat16, because small steps vanish in bfloat16"
                              + " (bfloat16 in stages that train something beside them)" * bool(adapted))
        derived["weights"] += "; as they are stored in stages by ptuning_v2" * ("ptuning_v2" in methods)
    if experts := facts.experts:
        share = f"{experts / facts.parameters:.0%} of the parameters are experts, fused into few weights"
        if "qlora" in methods:
            derived["experts"] = f"not quantised because {share}, which bitsandbytes does not touch"
        elif "lora" in methods and full.lora_target_modules == "all-linear":
            derived["experts"] = f"adapted too because {share}, and all-linear takes those as well"
    return derived
