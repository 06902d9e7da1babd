"""A recipe: all that decides a run, as flat scalars, and the one door (`override`) by which values come in.

The form, a notebook's parameters cell and the command line all edit a `Recipe` by `override`, so a wrong name
or a wrong type is refused in the same words everywhere, before any work. `None` means "the advised value";
`hyperparameters` fills it in, and the filled (*resolved*) recipe is what a run stores.
"""

import dataclasses
import datetime
import difflib
import math
import operator
from dataclasses import dataclass
from typing import Any, get_args

from ..errors import BadInput

METHOD_DESCRIPTIONS = {
    "full": "every weight",
    "lora": "low-rank matrices beside the weight matrices",
    "qlora": "the same on weights quantised to 4 bit: least memory",
    "ptuning_v2": "a prefix of keys and values in every layer; the weights stay",
    "freeze": "chosen parts: last or middle layers, norm, head, or new blocks that begin as the identity",
}
METHODS = tuple(METHOD_DESCRIPTIONS)
_LORA_OPTIONS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora")
METHOD_OPTIONS = {
    "full": (),
    "lora": _LORA_OPTIONS,
    "ptuning_v2": ("num_virtual_tokens", "prefix_init", "prefix_init_text"),
    "freeze": ("trainable_parts",),
    "qlora": (*_LORA_OPTIONS, "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"),
}
OPTIONS = {name for names in METHOD_OPTIONS.values() for name in names}  # fields that only some methods use
SCORERS = ("exact", "f1", "contains", "choice", "number", "json", "regex")  # of answers; see docs/data.md
ROLES = ("domain_text", "domain_tasks", "general_text", "general_tasks")
FREE_FIELDS = ("output_dir", "save_steps", "report_to", "prompt_examples")  # that decide nothing learnt
TYPE_NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
BOUNDS = {"min": (operator.ge, "at least"), "max": (operator.le, "at most"),
          "above": (operator.gt, "above"), "below": (operator.lt, "below")}


def _field(default: Any, help: str, **limits: Any) -> Any:
    """A recipe field: its default, its one help line shown everywhere, limits (min, max, above, choices)."""
    return dataclasses.field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Recipe:
    """All that decides a run; hyperparameters bear TRL's names, their twins for CPT the prefix `cpt_`."""

    mode: str = _field(
        "2", "which chain of stages: 1 to 7, or the path of a TOML file with a mode of your own")
    method: str = _field(
        "full", "which parameters train: full, lora, qlora, ptuning_v2 or freeze", choices=METHODS)
    cpt_method: str | None = _field(None, "method of the CPT stages; None: the same", choices=METHODS)
    model: str = _field("pocket", "base model: pocket, pocket-weak, smollm2, a folder or a hub name")
    chat_model: str | None = _field(
        None, "chat model, where modes 6 and 7 start; None: that beside pocket or smollm2")
    model_revision: str | None = _field(None, "revision of a hub model; None: cached, else newest")
    pretraining_learning_rate: float | None = _field(
        None, "peak rate of the model's pre-training, from which the rates follow; None: known or guessed",
        above=1e-12)  # the rates that follow are rounded, and none may become 0

    domain: str | None = _field(
        None, "a built-in domain: libraries, the installed TRL, PEFT and transformers; None: your own data",
        choices=("libraries",))
    library_fields: int = _field(96, "fields in domain libraries; the probe asks for a third of them", min=6)
    domain_text: str | None = _field(
        None, "text for CPT: file, folder or hub name; several: a.md, b.jsonl:2; None: pocket's")
    domain_tasks: str | None = _field(None, "questions and answers of your field: a file; None: as above")
    general_text: str | None = _field(None, "text of everyday kind: shows what is forgotten; None: as above")
    general_tasks: str | None = _field(None, "questions and answers of everyday kind: a file; None: as above")
    domain_text_probe: str | None = _field(None, "held-out domain text; None: split off domain_text")
    domain_tasks_probe: str | None = _field(None, "held-out domain tasks; None: split off domain_tasks")
    general_text_probe: str | None = _field(None, "held-out general text; None: split off general_text")
    general_tasks_probe: str | None = _field(None, "held-out general tasks; None: split off general_tasks")
    system_prompts: str | None = _field(
        None, "system message of tasks that have none: a text, or a .toml by role and type; None: none")
    bad_rows: str = _field(
        "stop", "rows that cannot be used: stop at them, or drop them and go on", choices=("stop", "drop"))
    train_thoughts: bool = _field(
        True, "train the thoughts of an answer; false: only what follows them, thoughts are read")
    template_date: str | None = _field(
        None, "day that a chat template shows, as 2026-11-27; None: today, where it shows one")
    probe_share: float = _field(0.1, "share of a role's rows split off as its probe", above=0, below=1)
    probe_rows: int = _field(200, "rows of each probe that are scored, at most", min=1)
    scorer: str = _field("exact", "how a probe's answers are scored, where a row has no scorer of its own",
                         choices=SCORERS)
    yardstick: bool | None = _field(None, "score the built-in general probe too; None: where you have no "
                                          "general data and no pocket model")
    prompt_examples: int | None = _field(
        None, "training rows in the untrained model's prompt, for the ledger's line prompt alone; 0: no such "
              "line; None: as many as fit, at most 8", min=0, max=8)
    pocket_seed: int = _field(0, "which of the pocket's invented companies is the domain", min=0)
    pocket_related: bool = _field(
        True, "the pocket's domain tasks have the form of general ones; false: a form of their own")

    general_share: float | None = _field(
        None, "share of general among the tasks of a mixed stage; None: the mode's", min=0, max=1)
    task_share: float | None = _field(
        None, "share of tasks in a CPT stage that mixes them in; None: the mode's", min=0, max=1)

    learning_rate: float | None = _field(None, "peak learning rate of the SFT stages; None: advised", above=0)
    cpt_learning_rate: float | None = _field(
        None, "peak learning rate of the CPT stages; None: advised", above=0)
    warmup_ratio: float | None = _field(None, "part of the SFT steps spent warming up", min=0, below=1)
    cpt_warmup_ratio: float | None = _field(None, "part of the CPT steps spent warming up", min=0, below=1)
    num_train_epochs: float | None = _field(
        None, "passes over an SFT stage's first role; None: advised", above=0)
    cpt_num_train_epochs: float | None = _field(
        None, "passes over a CPT stage's first role; None: advised", above=0)
    per_device_train_batch_size: int | None = _field(None, "blocks a step in SFT; None: advised", min=1)
    cpt_per_device_train_batch_size: int | None = _field(None, "blocks a step in CPT; None: advised", min=1)
    gradient_accumulation_steps: int = _field(1, "batches added up before a step", min=1)
    max_steps: int | None = _field(
        None, "stop each stage after so many steps; None: as many as the epochs", min=1)
    max_length: int | None = _field(
        None, "tokens in a block; longer tasks are dropped, longer texts cut", min=8)
    packing: bool | None = _field(None, "several rows in a block, attention kept apart; None: where possible")
    lr_scheduler_type: str = _field(
        "cosine", "course of the learning rate", choices=("cosine", "linear", "constant_with_warmup"))
    weight_decay: float = _field(0.0, "decay of the weights in AdamW", min=0)
    max_grad_norm: float = _field(1.0, "gradients are clipped to this norm", above=0)
    bf16: bool | None = _field(None, "compute in bfloat16; None: where the device has it and it pays")
    gradient_checkpointing: bool | None = _field(None, "recompute activations to save memory; None: advised")

    lora_r: int = _field(16, "rank of LoRA's and QLoRA's matrices", min=1)
    lora_alpha: int = _field(32, "LoRA's scale: alpha / rank", min=1)
    lora_dropout: float | None = _field(None, "dropout before LoRA's matrices; None: advised", min=0, below=1)
    lora_target_modules: str = _field("all-linear", "all-linear, or module names with commas between")
    use_rslora: bool = _field(False, "scale LoRA by alpha / sqrt(rank)")
    use_dora: bool = _field(False, "train the weights' magnitude apart from LoRA's direction")
    bnb_4bit_quant_type: str = _field("nf4", "QLoRA's 4-bit type", choices=("nf4", "fp4"))
    bnb_4bit_use_double_quant: bool = _field(True, "quantise QLoRA's scales as well")
    bnb_4bit_compute_dtype: str | None = _field(
        None, "QLoRA's compute type; None: by device", choices=("float32", "bfloat16", "float16"))
    num_virtual_tokens: int = _field(20, "length of the P-tuning v2 prefix, in tokens", min=1)
    prefix_init: str = _field("text", "prefix starts from a text or at random", choices=("text", "random"))
    prefix_init_text: str | None = _field(None, "text the prefix starts from; None: rows of the stage's data")
    trainable_parts: str = _field(
        "last:2", "freeze trains these: last:N, layers:A-B, head, norm, new_blocks:N, new_head, with commas")

    eval_steps: int | None = _field(
        None, "steps between two scores of the probes' loss; None: eight a stage", min=1)
    report_to: str | None = _field(
        None, "a tracker on this machine that shows the figures too: tensorboard or trackio; None: none",
        choices=("tensorboard", "trackio"))
    keep_best: str | None = _field(
        None, "a stage's result is the point where this role's held-out loss was lowest; None: its last step",
        choices=ROLES)
    early_stopping_patience: int | None = _field(
        None, "with keep_best: scores without a lower loss after which a stage ends; None: no end", min=1)
    save_steps: int | None = _field(
        None, "steps between two checkpoints inside a stage; None: every ten minutes", min=1)
    max_new_tokens: int | None = _field(
        None, "longest answer in a probe, in tokens; None: by the answers", min=1)
    seed: int = _field(0, "decides order, new weights and dropout", min=0)
    output_dir: str | None = _field(None, "folder of the run; None: a new one under runs/")


FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}


def field_type(name: str) -> type:
    """The scalar type of a field (str, int, float or bool), without its `None`."""
    return next(iter(get_args(FIELDS[name].type)), FIELDS[name].type)


def field_help(name: str) -> str:
    """The one help line of a field, as widgets, parameter cells and `--help` show it."""
    return FIELDS[name].metadata["help"]


def describe_field(name: str) -> str:
    """A field's help line with its choices and its default, for lists of parameters in a terminal."""
    field = FIELDS[name]
    more = [f"one of {', '.join(field.metadata['choices'])}"] if "choices" in field.metadata else []
    if field.default is not None:
        more.append(f"default {format_argument(field.default)}")
    return field_help(name) + (f" [{'; '.join(more)}]" if more else "")


def format_argument(value: Any) -> str:
    """A value as the command line takes it, and `parse_value` reads it: none, true, false, or its text."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def suggest_name(name: str, known) -> str:
    """` — did you mean 'x'?` for the closest known word, or an empty text."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" — did you mean {close[0]!r}?" if close else ""


def override(recipe: Recipe, **values: Any) -> Recipe:
    """A copy of the recipe with these values, each checked; the way in for form, notebook and command line.

    Raises BadInput, naming the field and the remedy, for an unknown name, a wrong type (text for a number, a
    bool for an int), NaN, or a value outside the field's limits. Numpy scalars are converted.
    """
    return dataclasses.replace(recipe, **{name: _check_value(name, value) for name, value in values.items()})


def _check_name(name: str) -> None:
    if name not in FIELDS:
        raise BadInput(f"unknown parameter {name!r}{suggest_name(name, FIELDS)}", field=name)


def _check_value(name: str, value: Any) -> Any:
    """The value as the field's type, or BadInput."""
    _check_name(name)
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()
    if value is None:
        if type(None) in get_args(FIELDS[name].type):
            return None
        raise BadInput(f"{name} may not be None: {field_help(name)}", field=name)
    kind = field_type(name)
    if name == "mode" and type(value) is int:  # papermill reads `-p mode 4` as a number
        value = str(value)
    if kind is float and type(value) is int:
        value = float(value)
    if kind is str and isinstance(value, datetime.date):  # YAML reads 2026-11-27 as a date
        value = value.isoformat()
    if type(value) is not kind:
        given = f"the text {value!r}" if type(value) is str else repr(value)
        # YAML, as papermill reads its parameters, takes 1e-4 for text
        types = kind, type(value)
        remedy = ("; write it without quotes and with a point: 1.0e-4" if types == (float, str) else
                  f"; write {value:.0f}" if types == (int, float) and value.is_integer() else "")
        raise BadInput(f"{name} must be {TYPE_NAMES[kind]}, not {given}{remedy}", field=name)
    _check_limits(name, value)
    return value


def _check_limits(name: str, value: Any) -> None:
    limits = FIELDS[name].metadata
    if "choices" in limits and value not in limits["choices"]:
        raise BadInput(f"{name} must be one of {', '.join(limits['choices'])}, not {value!r}"
                       + suggest_name(value, limits["choices"]), field=name)
    if isinstance(value, str):
        if not value.strip() or not value.isprintable():
            raise BadInput(f"{name} is empty or holds unprintable characters: {value!r}", field=name)
        # a command line would take such text for an option or a missing value
        if value.startswith("-") or value.lower() == "none":
            raise BadInput(f"{name} may not be {value!r}; write ./{value} for a file of that name, "
                           "and None without quotes for the advised value", field=name)
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{name} must be a finite number, not {value}", field=name)
    for key, (holds, words) in BOUNDS.items():
        if key in limits and not holds(value, limits[key]):
            raise BadInput(f"{name} must be {words} {limits[key]}, not {value}", field=name)


def parse_value(name: str, text: str) -> Any:
    """A command line's text as the field's type: `none` is None, `true`/`false` a bool; raises BadInput."""
    _check_name(name)
    kind = field_type(name)
    if text.lower() == "none":
        return None
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise BadInput(f"{name} must be {TYPE_NAMES[bool]}, not {text!r}", field=name)
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise BadInput(f"{name} must be {TYPE_NAMES[kind]}, not {text!r}", field=name) from None


def from_parameters(namespace: dict) -> Recipe:
    """The recipe of a notebook: every name of `namespace` that is a recipe field, through `override`.

    A scalar whose name nearly is a field's is refused as a typing error, since papermill itself only warns.
    """
    for name, value in namespace.items():
        scalar = not name.startswith("_") and isinstance(value, (str, int, float, bool, type(None)))
        if scalar and difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.8):
            _check_name(name)
    return override(Recipe(), **{name: value for name, value in namespace.items() if name in FIELDS})


def recipe_from_dict(values: dict) -> Recipe:
    """The recipe stored in a run's `recipe.json`, through the same door."""
    return override(Recipe(), **values)


def recipe_to_dict(recipe: Recipe) -> dict:
    """The recipe as a flat dict of scalars, ready for JSON."""
    return dataclasses.asdict(recipe)


def differing_fields(old: dict, new: dict, ignore=("output_dir",)) -> list[str]:
    """The names of fields in which two recipe dicts differ."""
    return [name for name in FIELDS if name not in ignore and old.get(name) != new.get(name)]
