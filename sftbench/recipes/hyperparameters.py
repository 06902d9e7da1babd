"""A value with its reason for every `None` of a recipe, and warnings of values far from the advice.

`known` is a plain dict of what was measured or said about data, model, device and aims; any key may be absent
or None. Rates, warm-up and epochs follow rules R8 to R10 of the advice, which the reasons name.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from ..distributed import process_count
from .recipe import Recipe

ASSUMED_PRETRAINING_RATE = (
    1e-4  # pre-training peak rate where no card tells it; usual for models of some billions
)
LEARNING_RATE_FRACTION = {
    "sft": 0.1,
    "cpt": 1 / 3,
}  # of the pre-training rate; CPT goes on with pre-training, on new text
METHOD_FACTOR = {"full": 1, "freeze": 1, "lora": 5, "qlora": 5, "ptuning_v2": 100}  # times what full takes
ADAPTERS = ("lora", "qlora")
ADAPTER_PASSES = 2  # CPT by LoRA wants so many times the passes: it learns less from each (arXiv:2405.09673)
MAX_LEARNING_RATE = 0.1  # no advised rate exceeds this; beyond it even a prefix jumps about
BATCH_SIZE = {
    "sft": 4,
    "cpt": 2,
}  # blocks a step for which the rates hold; small ones learn facts in fewer tokens
BATCH_SCALE = (0.5, 2.0)  # how far another batch may move the rate
WARMUP_RATIO = {"sft": 0.005, "cpt": 0.01}  # at full's rate; CPT as pre-training has it, SFT less
MAX_WARMUP_RATIO = 0.1
EPOCHS_UNKNOWN = {"sft": 3, "cpt": 1}  # where rows or tokens were not counted
MAX_EPOCHS = {"sft": 10, "cpt": 8}
# So many rows (tokens) do with so many passes, and want so many more for each factor of ten they lack.
ENOUGH = {"sft": (1e5, 2, 2), "cpt": (1e9, 1, 1)}
LENGTH_RANGE = (128, 1024)  # shortest and longest advised block, in tokens
LORA_DROPOUT = 0.05  # before LoRA's matrices
# Parameters from which bfloat16 pays on a CPU that has it: a step took 0.8 × float32's time at 0.5 million,
# 1.1 at 1.3 million, 1 / 1.5 from 9 million on (one thread, AVX512-BF16, torch 2.13).
CPU_BF16_FROM = 5e6
LARGE_MODEL = 1e9  # parameters from which activations are worth recomputing
ANSWER_MARGIN, MAX_ANSWER, ANSWER_UNKNOWN = 4, 256, 64  # tokens
YARDSTICK_LENGTH = 256  # tokens of the yardstick's longest row for a tokenizer that splits it into bytes
WARNING_FACTOR = 5  # a rate so many times above or below the advised one is warned of


def format_count(number: float) -> str:
    """As a reader likes it: 2.5, 1,200, 3.5 million, 1 billion."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}" if number >= 10 else f"{number:.3g}"


def full_learning_rate(kind: str, pretraining_rate: float) -> float:
    """The rate that `full` takes in stages of this kind."""
    return float(f"{min(LEARNING_RATE_FRACTION[kind] * pretraining_rate, MAX_LEARNING_RATE):.3g}")


def advised_epochs(kind: str, amount: float) -> float:
    """Passes over so many rows (SFT) or tokens (CPT): more for each factor of ten that they fall short."""
    enough, least, more = ENOUGH[kind]
    passes = round(least + more * math.log10(enough / max(amount, 1)))
    return float(min(max(passes, least), MAX_EPOCHS[kind]))


def _stage_field(recipe: Recipe, kind: str, name: str) -> Any:
    """The recipe's field for stages of this kind: CPT fields bear a prefix."""
    return getattr(recipe, f"cpt_{name}" if kind == "cpt" else name)


def _advise_cpt_method(recipe: Recipe, known: dict) -> tuple:
    return recipe.method, "CPT and SFT use one method unless you say otherwise"


def _advise_pretraining_rate(recipe: Recipe, known: dict) -> tuple:
    if rate := known.get("pretraining_learning_rate"):
        return rate, "the model's card says so"
    return ASSUMED_PRETRAINING_RATE, "it is assumed: neither card nor user names the pre-training rate"


def _advise_batch(recipe: Recipe, known: dict, kind: str) -> tuple:
    return BATCH_SIZE[kind], "small batches learn facts from fewer tokens"


def _advise_rate(recipe: Recipe, known: dict, kind: str) -> tuple:
    method, pretraining_rate = _stage_field(recipe, kind, "method"), recipe.pretraining_learning_rate
    fraction, factor = LEARNING_RATE_FRACTION[kind], METHOD_FACTOR[method]
    full = fraction * pretraining_rate
    why = f"{kind.upper()} takes {fraction:.2g} × the pre-training rate {pretraining_rate:.3g}"
    if kind == "cpt":
        why += ", more than SFT, as it goes on with pre-training"
    if factor != 1:
        why += f", and {method} {factor:g} × what full takes"
    blocks = _stage_field(recipe, kind, "per_device_train_batch_size") * recipe.gradient_accumulation_steps
    blocks *= process_count()
    scale = min(max(math.sqrt(blocks / BATCH_SIZE[kind]), BATCH_SCALE[0]), BATCH_SCALE[1])
    if scale != 1:
        why += f", × {scale:.2g} for {blocks} blocks a step instead of {BATCH_SIZE[kind]}"
    most = MAX_LEARNING_RATE
    if kind == "cpt" and method in ADAPTERS:  # beyond it general knowledge goes faster than the new comes
        most = min(most, pretraining_rate)
    if full * factor * scale > most * 1.0001:  # not for a rounding error
        why += f", capped at {most:.3g}"
    return float(f"{min(full * factor * scale, most):.3g}"), f"{why} (R8)"


def _advise_warmup(recipe: Recipe, known: dict, kind: str) -> tuple:
    full = full_learning_rate(kind, recipe.pretraining_learning_rate)
    rate = _stage_field(recipe, kind, "learning_rate")
    ratio = min(WARMUP_RATIO[kind] * math.sqrt(rate / full), MAX_WARMUP_RATIO)
    side = "as" if kind == "cpt" else "less than"
    why = f"{kind.upper()} warms up for {WARMUP_RATIO[kind]:g} of its steps, {side} pre-training does"
    if rate != full:
        why += (f"; {format_count(rate / full)} × full's rate moves it by the square root, "
                f"up to {MAX_WARMUP_RATIO:g}")
    return float(f"{ratio:.3g}"), f"{why} (R9)"


def _advise_epochs(recipe: Recipe, known: dict, kind: str) -> tuple:
    unit, role = ("rows", "domain_tasks") if kind == "sft" else ("tokens", "domain_text")
    enough, least, _ = ENOUGH[kind]
    amount = (known.get(unit) or {}).get(role)
    if not amount:
        return float(EPOCHS_UNKNOWN[kind]), f"the {unit} of {role} are not counted yet (R10)"
    passes = advised_epochs(kind, amount)
    why = (f"{role} has {format_count(amount)} {unit}; fewer want more passes "
           f"({least} do from {format_count(enough)} on)")
    if kind == "cpt" and recipe.cpt_method in ADAPTERS:
        passes *= ADAPTER_PASSES
        why += f", and {recipe.cpt_method} {ADAPTER_PASSES} × as many, as it learns less from each"
    return passes, f"{why} (R10)"


def _advise_max_length(recipe: Recipe, known: dict) -> tuple:
    longest = known.get("row_tokens")
    length, why = LENGTH_RANGE[1], "the length of your rows is not known"
    if longest:
        power = 1 << (math.ceil(longest) - 1).bit_length()
        length = min(max(power, LENGTH_RANGE[0]), LENGTH_RANGE[1])
        why = f"99 % of the task rows have at most {longest:,} tokens"
    room = known.get("context") or length
    if "ptuning_v2" in (recipe.method, recipe.cpt_method):
        room -= recipe.num_virtual_tokens * bool(known.get("context"))  # the prefix takes positions as well
    if room < length:
        length, why = max(room, 8), f"{why}, and the model has room for {room:,}"
    return length, why


def _advise_packing(recipe: Recipe, known: dict) -> tuple:
    if "ptuning_v2" in (recipe.method, recipe.cpt_method):
        return False, "a prefix shares the cache with the rows, and their borders would be lost"
    return True, "short rows then share a block, each seeing itself alone, and no step is spent on padding"


def _advise_bf16(recipe: Recipe, known: dict) -> tuple:
    has, place = bool(known.get("bf16")), "GPU" if known.get("device") == "cuda" else "CPU"
    if not has:
        return False, f"the {place} is not known to have bfloat16"
    if place == "CPU" and (known.get("parameters") or 0) < CPU_BF16_FROM:
        return False, f"on a CPU it saves no time below {format_count(CPU_BF16_FROM)} parameters"
    return True, f"the {place} computes in bfloat16" + ", by half faster at this size" * (place == "CPU")


def _advise_dropout(recipe: Recipe, known: dict) -> tuple:
    if known.get("experts"):
        return 0.0, "PEFT has no dropout before a mixture's fused experts"
    return LORA_DROPOUT, "a little keeps small data from being learnt by heart"


def _advise_checkpointing(recipe: Recipe, known: dict) -> tuple:
    if "ptuning_v2" in (recipe.method, recipe.cpt_method):
        return False, "PEFT refuses it for prefixes"
    large = (known.get("parameters") or 0) >= LARGE_MODEL
    return large, (f"{format_count(LARGE_MODEL)} parameters and more leave little memory free" if large else
                   f"below {format_count(LARGE_MODEL)} parameters the memory saved is not worth the time")


def _advise_compute_dtype(recipe: Recipe, known: dict) -> tuple:
    if known.get("device") != "cuda":
        return "float32", "on a CPU it is the safe one"
    return ("bfloat16" if known.get("bf16") else "float16"), _advise_bf16(recipe, known)[1]


def _advise_new_tokens(recipe: Recipe, known: dict) -> tuple:
    answer = known.get("answer_tokens")
    if not answer:
        return ANSWER_UNKNOWN, "the length of your answers is not known"
    return min(answer + ANSWER_MARGIN, MAX_ANSWER), f"the longest answer of a probe has {answer} tokens"


def _advise_yardstick(recipe: Recipe, known: dict) -> tuple:
    if known.get("pocket"):
        return False, "a pocket model knows nothing of what it asks"
    general = ("general_text", "general_tasks")
    if any(getattr(recipe, role) or (known.get("rows") or {}).get(role) is not None for role in general):
        return False, "your own general data shows what is forgotten"
    if (known.get("context") or YARDSTICK_LENGTH) < YARDSTICK_LENGTH:
        return False, f"its texts need {YARDSTICK_LENGTH} positions, and the model has {known['context']:,}"
    return True, "you have no general data, and without any nothing would show what is forgotten"


# In order: what stands above may be used below. Each returns value and reason, whatever the field holds.
ADVISED: dict[str, Callable[[Recipe, dict], tuple]] = {
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


def resolve_recipe(recipe: Recipe, known: dict) -> tuple[Recipe, dict[str, str]]:
    """The recipe with every advised `None` filled, and `{field: "value because reason"}`; set fields stay."""
    reasons = {}
    for name, advise in ADVISED.items():
        if getattr(recipe, name) is None:
            value, why = advise(recipe, known)
            recipe = replace(recipe, **{name: value})
            reasons[name] = f"{_format_value(value)} because {why}"
    return recipe, reasons


def derived_settings(full: Recipe, known: dict) -> dict[str, str]:
    """What of a resolved recipe's run is no choice but follows from method, model and device, and why."""
    found = {"attn_implementation": "sdpa because with it positions alone keep packed rows apart"}
    methods = {full.method, full.cpt_method}
    if methods == {"qlora"}:
        found["weights"] = f"4 bit, computed with in {full.bnb_4bit_compute_dtype}, because that is QLoRA"
    elif not full.bf16:
        found["weights"] = "float32 because bf16 is off"
    else:
        beside = methods & {"lora", "qlora", "ptuning_v2"}
        found["weights"] = ("bfloat16 because they only stand beside what trains" if beside == methods else
                            "float32, computed with in bfloat16, because small steps vanish in bfloat16"
                            + " (bfloat16 in stages that train something beside them)" * bool(beside))
    if experts := known.get("experts"):
        share = f"{experts / known['parameters']:.0%} of the parameters are experts, fused into few weights"
        if "qlora" in methods:
            found["experts"] = f"not quantised because {share}, which bitsandbytes does not touch"
        elif "lora" in methods and full.lora_target_modules == "all-linear":
            found["experts"] = f"adapted too because {share}, and all-linear takes those as well"
    return found


def _format_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def hyperparameter_warnings(recipe: Recipe, known: dict) -> list[str]:
    """Where the user's values are far from the advised ones or do not fit data, model, device or method."""
    full, _ = resolve_recipe(recipe, known)
    return [*_number_warnings(full, known), *_fit_warnings(full, known)]


def _number_warnings(full: Recipe, known: dict) -> list[str]:
    """Rates, warm-up and epochs of a resolved recipe, far from what would be advised."""
    found = []
    for prefix in ("cpt_", ""):
        name = f"{prefix}learning_rate"
        rate, (advised, _) = getattr(full, name), ADVISED[name](full, known)
        off = max(rate / advised, advised / rate)
        if off >= WARNING_FACTOR * 0.9999:  # not for a rounding error
            side, method = "above" if rate > advised else "below", getattr(full, f"{prefix}method")
            found.append(f"{name} {rate:.3g} is {format_count(off)} times {side} the {advised:.3g} "
                         f"advised for {method} (R8)")
        name = f"{prefix}warmup_ratio"
        if (ratio := getattr(full, name)) > MAX_WARMUP_RATIO:
            found.append(f"{name} {ratio:g} is beyond {MAX_WARMUP_RATIO:g}, so much of the run is spent "
                         f"below its rate; advised is {ADVISED[name](full, known)[0]:g} (R9)")
        name = f"{prefix}num_train_epochs"
        passes, (advised, _) = getattr(full, name), ADVISED[name](full, known)
        if passes < advised / 2:
            found.append(f"{name} {passes:g} is less than half of the {advised:g} advised; rather overfit "
                         "than underfit (R10)")
    return found


def _fit_warnings(full: Recipe, known: dict) -> list[str]:
    """What does not fit data, model, device or method, in a resolved recipe."""
    rows, context, answer = known.get("row_tokens"), known.get("context"), known.get("answer_tokens")
    prefix, (has_bf16, why) = "ptuning_v2" in (full.method, full.cpt_method), _advise_bf16(full, known)
    cases = (
        (rows and full.max_length < rows,
         f"max_length {full.max_length} drops longer tasks, and 99 % of yours reach up to {rows} tokens"),
        (context and full.max_length > context,
         f"max_length {full.max_length} exceeds the model's {context} positions"),
        (answer and full.max_new_tokens < answer,
         f"max_new_tokens {full.max_new_tokens} cuts probe answers, which reach up to {answer} tokens"),
        (prefix and full.packing, "packing does not go with ptuning_v2: rows would lose their borders"),
        (prefix and full.gradient_checkpointing,
         "gradient_checkpointing does not go with ptuning_v2: PEFT refuses it"),
        (full.bf16 and not has_bf16, f"bf16 is on, but {why}"),
    )
    return [text for holds, text in cases if holds]
