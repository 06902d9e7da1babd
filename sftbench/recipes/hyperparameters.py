"""A value with its reason for every `None` of a recipe; rates, warm-up and epochs follow rules R8 to R10."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..distributed import process_count
from .facts import Facts
from .pretraining_rates import GUESS_SOURCE, guess_rate, is_guess
from .recipe import Recipe
from .stages import stage_field

# Peak pre-training rate of a model of which nothing is known; usual for some billions of parameters.
ASSUMED_PRETRAINING_RATE = 1e-4
# Of the pre-training rate. CPT goes on with pre-training, on new text.
LEARNING_RATE_FRACTION = {"sft": 0.1, "cpt": 1 / 3}
METHOD_FACTOR = {"full": 1, "freeze": 2, "lora": 5, "qlora": 5, "ptuning_v2": 100}  # times what full takes
ADAPTERS = ("lora", "qlora")
GUESSED_ADAPTER_FACTOR = 10  # the rule behind the guess is for adapters, and full takes a tenth there
# CPT by LoRA wants so many times the passes: it learns less from each (arXiv:2405.09673). Domain and general
# accuracy on the pocket, with a company that README's tables leave out: at 5 x full's rate with full's passes
# 0.28 and 0.58, with twice the passes 0.97 and 0.37, at the pre-training rate and twice the passes 0.90 and
# 0.65; at 10 x full's rate 0.03 in the domain.
ADAPTER_PASSES = 2
MAX_LEARNING_RATE = 0.1  # beyond it even a prefix jumps about
# Blocks a step for which the rates hold; small batches learn facts in fewer tokens.
BATCH_SIZE = {"sft": 4, "cpt": 2}
BATCH_SCALE = (0.5, 2.0)  # how far another batch may move the rate
WARMUP_RATIO = {"sft": 0.005, "cpt": 0.01}  # at full's rate; CPT as pre-training has it, SFT less
MAX_WARMUP_RATIO = 0.1
EPOCHS_UNKNOWN = {"sft": 3, "cpt": 1}  # where rows or tokens were not counted
MAX_EPOCHS = {"sft": 10, "cpt": 8}
# From so many rows (tokens) on so many passes do; for each factor of ten that they lack, so many more.
ENOUGH = {"sft": (1e5, 2, 2), "cpt": (1e9, 1, 1)}
LENGTH_RANGE = (128, 1024)  # shortest and longest advised block, in tokens
# Before LoRA's matrices, in small models. On the pocket (mode 2, four seeds) domain tasks end at 0.24 nats
# with it and at 0.45 without; SmolLM2-135M at 0.27 to 0.29 and at 0.26, and a step takes up to a fifth less.
LORA_DROPOUT, DROPOUT_BELOW = 0.05, 5e6
# Parameters from which bfloat16 pays on a CPU that has it: a step took 1.2 x float32's time at 0.5 million,
# 0.9 at 1.3 million, 0.65 to 0.69 from 9 to 106 million (one thread, AVX512-BF16, torch 2.13).
CPU_BF16_FROM = 5e6
LARGE_MODEL = 1e9  # parameters from which activations are worth recomputing
ANSWER_MARGIN, MAX_ANSWER, ANSWER_UNKNOWN = 4, 256, 64  # tokens
YARDSTICK_LENGTH = 256  # tokens of the yardstick's longest row for a tokenizer that splits it into bytes


@dataclass(frozen=True)
class Advised:
    """A value that is advised, why, and the rule behind it (R8 to R10) if there is one."""

    value: Any
    reason: str
    rule: str = ""

    def __str__(self) -> str:
        value = f"{self.value:.3g}" if isinstance(self.value, float) else str(self.value)
        return f"{value} because {self.explanation}"

    @property
    def explanation(self) -> str:
        """The reason with its rule."""
        return f"{self.reason} ({self.rule})" if self.rule else self.reason


def format_count(number: float) -> str:
    """As a reader likes it: 2.5, 1,200, 3.5 million, 1 billion."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}" if number >= 10 else f"{number:.3g}"


def full_learning_rate(kind: str, pretraining_rate: float, facts: Facts) -> float:
    """The rate that `full` takes in stages of this kind."""
    limit, _ = _rate_limit(pretraining_rate, facts, kind, "full")
    return float(f"{min(LEARNING_RATE_FRACTION[kind] * pretraining_rate, limit):.3g}")


def advised_epochs(kind: str, amount: float) -> float:
    """Passes over so many rows (SFT) or tokens (CPT): more for each factor of ten that they fall short."""
    enough, least, more = ENOUGH[kind]
    passes = round(least + more * math.log10(enough / max(amount, 1)))
    return float(min(max(passes, least), MAX_EPOCHS[kind]))


def _advise_cpt_method(recipe: Recipe, facts: Facts) -> Advised:
    return Advised(recipe.method, "CPT and SFT use one method unless you say otherwise")


def _advise_pretraining_rate(recipe: Recipe, facts: Facts) -> Advised:
    if rate := facts.pretraining_learning_rate:
        published = f"it has the shape of {facts.pretrained_as}, which went at this peak"
        return Advised(rate, published if facts.pretrained_as else "the model's card says so")
    if width := facts.hidden_size:
        return Advised(guess_rate(width, facts.model_type),
                       f"it is guessed from the width of {width:,}, by {GUESS_SOURCE}, as nobody names it; "
                       "sftbench advise --measure tries what the model bears")
    return Advised(ASSUMED_PRETRAINING_RATE, "it is assumed: neither card nor user names it")


def _advise_batch(recipe: Recipe, facts: Facts, kind: str) -> Advised:
    return Advised(BATCH_SIZE[kind], "small batches learn facts from fewer tokens")


def _advise_rate(recipe: Recipe, facts: Facts, kind: str) -> Advised:
    method, pretraining_rate = getattr(recipe, stage_field("method", kind)), recipe.pretraining_learning_rate
    if rate := facts.tested_rates.get(f"{kind} {method}"):
        return Advised(rate, "a range test on your model and data had its lowest loss at ten times it", "R8")
    fraction, factor = LEARNING_RATE_FRACTION[kind], METHOD_FACTOR[method]
    if method in ADAPTERS and is_guess(pretraining_rate, facts):
        factor = GUESSED_ADAPTER_FACTOR
    full = fraction * pretraining_rate
    why = f"{kind.upper()} takes {fraction:.2g} × the pre-training rate {pretraining_rate:.3g}"
    if kind == "cpt":
        why += ", more than SFT, as it goes on with pre-training"
    if factor != 1:
        why += f", and {method} {factor:g} × that"
    blocks = getattr(recipe, stage_field("per_device_train_batch_size", kind))
    blocks *= recipe.gradient_accumulation_steps * process_count()
    scale = min(max(math.sqrt(blocks / BATCH_SIZE[kind]), BATCH_SCALE[0]), BATCH_SCALE[1])
    if scale != 1:
        why += f", × {scale:.2g} for {blocks} blocks a step instead of {BATCH_SIZE[kind]}"
    limit, reason = _rate_limit(pretraining_rate, facts, kind, method)
    if full * factor * scale > limit * 1.0001:  # not for a rounding error
        why += f", capped at {limit:.3g}{reason}"
    return Advised(float(f"{min(full * factor * scale, limit):.3g}"), why, "R8")


def _rate_limit(pretraining_rate: float, facts: Facts, kind: str, method: str) -> tuple[float, str]:
    """The highest rate that is advised, and why, as the end of a sentence."""
    if method in ADAPTERS and kind == "cpt":  # beyond it general knowledge goes faster than the new comes
        return min(MAX_LEARNING_RATE, pretraining_rate), ""
    if method == "full" and facts.pretrained_as and facts.hidden_size:
        # A published peak was reached in batches of a million tokens, after a long warm-up. By `full` with a
        # tenth of SmolLM2-135M's (3e-3) 25 steps end at 0.72 nats, with its width's at 0.35 (docs/advice.md).
        return LEARNING_RATE_FRACTION[kind] * guess_rate(facts.hidden_size, facts.model_type), (
            f", which {GUESS_SOURCE} leaves for full at its width")
    return MAX_LEARNING_RATE, ""


def _advise_warmup(recipe: Recipe, facts: Facts, kind: str) -> Advised:
    full = full_learning_rate(kind, recipe.pretraining_learning_rate, facts)
    rate = getattr(recipe, stage_field("learning_rate", kind))
    times = rate / full
    ratio = min(WARMUP_RATIO[kind] * math.sqrt(times), MAX_WARMUP_RATIO)
    side = "as" if kind == "cpt" else "less than"
    why = f"{kind.upper()} warms up for {WARMUP_RATIO[kind]:g} of its steps, {side} pre-training does"
    if rate != full:
        why += (f"; {format_count(times)} × full's rate moves it by the square root, "
                f"up to {MAX_WARMUP_RATIO:g}")
    return Advised(float(f"{ratio:.3g}"), why, "R9")


def _advise_epochs(recipe: Recipe, facts: Facts, kind: str) -> Advised:
    unit, role = ("rows", "domain_tasks") if kind == "sft" else ("tokens", "domain_text")
    enough, least, _ = ENOUGH[kind]
    amount = facts.row_count(role) if kind == "sft" else facts.tokens.get(role)
    if not amount:
        return Advised(float(EPOCHS_UNKNOWN[kind]), f"the {unit} of {role} are not counted yet", "R10")
    passes = advised_epochs(kind, amount)
    why = (f"{role} has {format_count(amount)} {unit}; fewer want more passes "
           f"({least} do from {format_count(enough)} on)")
    if kind == "cpt" and recipe.cpt_method in ADAPTERS:
        passes *= ADAPTER_PASSES
        why += f", and {recipe.cpt_method} {ADAPTER_PASSES} × as many, as it learns less from each"
    return Advised(passes, why, "R10")


def _advise_max_length(recipe: Recipe, facts: Facts) -> Advised:
    longest = facts.row_tokens
    length, why = LENGTH_RANGE[1], "the length of your rows is not known"
    if longest:
        power = 1 << (math.ceil(longest) - 1).bit_length()
        length = min(max(power, LENGTH_RANGE[0]), LENGTH_RANGE[1])
        why = f"99 % of the task rows have at most {longest:,} tokens"
    positions = min((number for number in (facts.context, facts.positions) if number), default=None)
    room = positions or length
    if "ptuning_v2" in (recipe.method, recipe.cpt_method):
        room -= recipe.num_virtual_tokens * bool(positions)  # the prefix takes positions as well
    if room < length:
        length, why = max(room, 8), f"{why}, and the model has room for {room:,}"
    return Advised(length, why)


def _advise_packing(recipe: Recipe, facts: Facts) -> Advised:
    if "ptuning_v2" in (recipe.method, recipe.cpt_method):
        return Advised(False, "a prefix shares the cache with the rows, and their borders would be lost")
    if facts.packing_fault:
        return Advised(False, facts.packing_fault)
    return Advised(True, "short rows then share a block, each seeing itself alone, and no step is spent on "
                         "padding")


def _advise_bf16(recipe: Recipe, facts: Facts) -> Advised:
    device = "GPU" if facts.device == "cuda" else "CPU"
    if not facts.bf16:
        return Advised(False, f"the {device} is not known to have bfloat16")
    if device == "CPU" and (facts.parameters or 0) < CPU_BF16_FROM:
        return Advised(False, f"on a CPU it saves no time below {format_count(CPU_BF16_FROM)} parameters")
    return Advised(True, f"the {device} computes in bfloat16"
                   + ", by half faster at this size" * (device == "CPU"))


def _advise_dropout(recipe: Recipe, facts: Facts) -> Advised:
    if facts.experts:
        return Advised(0.0, "PEFT has no dropout before a mixture's fused experts")
    if (facts.parameters or 0) >= DROPOUT_BELOW:
        return Advised(0.0, f"it takes time, and was seen to help below {format_count(DROPOUT_BELOW)} "
                            "parameters alone")
    return Advised(LORA_DROPOUT, "a little keeps small data from being learnt by heart")


def _advise_checkpointing(recipe: Recipe, facts: Facts) -> Advised:
    if "ptuning_v2" in (recipe.method, recipe.cpt_method):
        return Advised(False, "PEFT refuses it for prefixes")
    large = (facts.parameters or 0) >= LARGE_MODEL
    size = format_count(LARGE_MODEL)
    return Advised(large, f"{size} parameters and more leave little memory free" if large else
                   f"below {size} parameters the memory saved is not worth the time")


def _advise_compute_dtype(recipe: Recipe, facts: Facts) -> Advised:
    if facts.device != "cuda":
        return Advised("float32", "on a CPU it is the safe one")
    return Advised("bfloat16" if facts.bf16 else "float16", _advise_bf16(recipe, facts).reason)


def _advise_new_tokens(recipe: Recipe, facts: Facts) -> Advised:
    answer = facts.answer_tokens
    if not answer:
        return Advised(ANSWER_UNKNOWN, "the length of your answers is not known")
    length = min(answer + ANSWER_MARGIN, MAX_ANSWER)
    why = f"the longest answer of a probe has {answer} tokens"
    if facts.positions and facts.prompt_tokens:
        room = facts.positions - facts.prompt_tokens
        if "ptuning_v2" in (recipe.method, recipe.cpt_method):
            room -= recipe.num_virtual_tokens
        if room < length:
            length, why = max(room, 1), f"{why}, and the model's positions leave {room} beside the question"
    return Advised(length, why)


def _advise_yardstick(recipe: Recipe, facts: Facts) -> Advised:
    if facts.pocket:
        return Advised(False, "a pocket model knows nothing of what it asks")
    general = ("general_text", "general_tasks")
    if any(getattr(recipe, role) or facts.row_count(role) is not None for role in general):
        return Advised(False, "your own general data shows what is forgotten")
    if (facts.context or YARDSTICK_LENGTH) < YARDSTICK_LENGTH:
        return Advised(
            False, f"its texts need {YARDSTICK_LENGTH} positions, and the model has {facts.context:,}")
    return Advised(True, "you have no general data, and without any nothing would show what is forgotten")


# In this order: a value may follow from those above it. Each function advises whatever the field holds.
ADVISED: dict[str, Callable[[Recipe, Facts], Advised]] = {
    "cpt_method": _advise_cpt_method,
    "pretraining_learning_rate": _advise_pretraining_rate,
    "cpt_per_device_train_batch_size": partial(_advise_batch, kind="cpt"),
    "per_device_train_batch_size": partial(_advise_batch, kind="sft"),
    "cpt_learning_rate": partial(_advise_rate, kind="cpt"),
    "learning_rate": partial(_advise_rate, kind="sft"),
    "cpt_warmup_ratio": partial(_advise_warmup, kind="cpt"),
    "warmup_ratio": partial(_advise_warmup, kind="sft"),
    "cpt_num_train_epochs": partial(_advise_epochs, kind="cpt"),
    "num_train_epochs": partial(_advise_epochs, kind="sft"),
    "max_length": _advise_max_length,
    "packing": _advise_packing,
    "bf16": _advise_bf16,
    "gradient_checkpointing": _advise_checkpointing,
    "lora_dropout": _advise_dropout,
    "bnb_4bit_compute_dtype": _advise_compute_dtype,
    "max_new_tokens": _advise_new_tokens,
    "yardstick": _advise_yardstick,
}


def resolve_recipe(recipe: Recipe, facts: Facts) -> tuple[Recipe, dict[str, Advised]]:
    """The recipe with every advised `None` filled, and what was advised by field; set fields stay."""
    advice = {}
    for name, advise in ADVISED.items():
        if getattr(recipe, name) is None:
            advice[name] = advise(recipe, facts)
            recipe = replace(recipe, **{name: advice[name].value})
    return recipe, advice
