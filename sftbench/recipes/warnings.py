"""Warnings: where mode or values depart far from the advice, or do not fit data, model, device or method."""

from .facts import Facts
from .hyperparameters import ADVISED, MAX_WARMUP_RATIO, format_count, resolve_recipe
from .modes import Mode, load_mode, recipe_stages
from .recipe import FIELDS, METHOD_OPTIONS, OPTIONS, Recipe
from .stages import TWINS

WARNING_FACTOR = 5  # a rate so many times above or below the advised one is warned of


def recipe_warnings(recipe: Recipe, facts: Facts) -> list[str]:
    """The recipe's warnings, one line each; raises BadInput for an unknown mode."""
    return [*_mode_warnings(recipe, facts), *hyperparameter_warnings(recipe, facts),
            *_unused_warnings(recipe, facts)]


def hyperparameter_warnings(recipe: Recipe, facts: Facts) -> list[str]:
    """The warnings of the user's values alone; each begins with its field."""
    full, _ = resolve_recipe(recipe, facts)
    return [*_number_warnings(full, facts), *_fit_warnings(full, facts)]


def settings_without_effect(recipe: Recipe, is_folder: bool, uses: set[str]) -> list[str]:
    """The settings that were set and that the start model, a folder or not, or the rows leave unread."""
    cases = {"model_revision is set and not used: the start model is a folder":
                 recipe.model_revision and is_folder,
             "train_thoughts is set and not used: no row has thoughts":
                 not recipe.train_thoughts and "thoughts" not in uses,
             "early_stopping_patience is set and not used: it goes with keep_best":
                 recipe.early_stopping_patience and not recipe.keep_best}
    return [text for text, holds in cases.items() if holds]


def missing_roles(mode: Mode, facts: Facts) -> list[str]:
    """The roles of the mode that have no rows; none as long as nothing was counted."""
    return [role for role in mode.roles if facts.rows and not facts.row_count(role)]


def _mode_warnings(recipe: Recipe, facts: Facts) -> list[str]:
    mode, warnings = load_mode(recipe.mode), []
    if missing := missing_roles(mode, facts):
        warnings.append(f"mode {recipe.mode} lacks rows of {' and '.join(missing)}: give data or change mode")
    if facts.wants == "both" and "general_tasks" not in recipe_stages(recipe, mode)[-1].shares:
        cause = ("general_share is 0" if recipe.general_share == 0 else
                 f"the last stage of mode {recipe.mode} has no general tasks")
        warnings.append(f"{cause} although general ability counts too: expect forgetting, or mix some in, as "
                        "modes 4 and 5 do (R4, R6)")
    return warnings


def _number_warnings(full: Recipe, facts: Facts) -> list[str]:
    """Rates, warm-up and epochs of a resolved recipe that are far from what would be advised."""
    warnings = []
    for prefix in ("cpt_", ""):
        names = [prefix + name for name in ("learning_rate", "warmup_ratio", "num_train_epochs")]
        rate, ratio, epochs = (getattr(full, name) for name in names)
        best_rate, best_ratio, best_epochs = (ADVISED[name](full, facts).value for name in names)
        times = max(rate / best_rate, best_rate / rate)
        if times >= WARNING_FACTOR * 0.9999:  # advised rates are rounded to three digits
            side, method = "above" if rate > best_rate else "below", getattr(full, f"{prefix}method")
            warnings.append(f"{names[0]} {rate:.3g} is {format_count(times)} times {side} the "
                            f"{best_rate:.3g} advised for {method} (R8)")
        if ratio > MAX_WARMUP_RATIO:
            warnings.append(f"{names[1]} {ratio:g} is beyond {MAX_WARMUP_RATIO:g}, so much of the run is "
                            f"spent below its rate; advised is {best_ratio:g} (R9)")
        if epochs < best_epochs / 2:
            warnings.append(f"{names[2]} {epochs:g} is less than half of the {best_epochs:g} advised; rather "
                            "overfit than underfit (R10)")
    return warnings


def _fit_warnings(full: Recipe, facts: Facts) -> list[str]:
    """What does not fit data, model, device or method, in a resolved recipe."""
    rows, context, answer = facts.row_tokens, facts.context, facts.answer_tokens
    prefix, bf16 = "ptuning_v2" in (full.method, full.cpt_method), ADVISED["bf16"](full, facts)
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
        (facts.untrained_tokens and _keeps_embedding(full),
         f"method {full.method} leaves the embedding as it is, where pre-training never touched "
         f"{', '.join(facts.untrained_tokens or ())}, so the model may not learn to stop: take full, or "
         "another start model"),
        (full.bf16 and not bf16.value, f"bf16 is on, but {bf16.reason}"),
    )
    return [text for holds, text in cases if holds]


def _keeps_embedding(full: Recipe) -> bool:
    """Whether the SFT stages train neither the embedding nor the output head."""
    parts = {"lora": full.lora_target_modules, "qlora": full.lora_target_modules, "ptuning_v2": "",
             "freeze": full.trainable_parts, "full": "embed"}[full.method]
    return not any(word in parts for word in ("embed", "head", "wte"))


def _unused_warnings(recipe: Recipe, facts: Facts) -> list[str]:
    """The values that were set and that nothing in this recipe's chain reads, with the reason."""
    mode, full = load_mode(recipe.mode), resolve_recipe(recipe, facts)[0]
    kinds = {stage.kind for stage in mode.stages}
    methods = {getattr(full, {"cpt": "cpt_method", "sft": "method"}[kind]) for kind in kinds}
    own = {name for method in methods for name in METHOD_OPTIONS[method]}
    tasks = [[role for role in stage.shares if role.endswith("_tasks")] for stage in mode.stages]
    mixes = any(stage.kind == "cpt" and 0 < len(names) < len(stage.shares)
                for stage, names in zip(mode.stages, tasks, strict=True))
    cases = (
        (OPTIONS - own, True, f"it is no option of {' or '.join(sorted(methods))}"),
        ([f"cpt_{name}" for name in TWINS], "cpt" not in kinds, f"mode {recipe.mode} has no CPT stage"),
        (TWINS[1:], "sft" not in kinds, f"mode {recipe.mode} has no SFT stage"),
        (["task_share"], not mixes, f"no CPT stage of mode {recipe.mode} mixes tasks in"),
        (["general_share"], max(map(len, tasks)) < 2, f"mode {recipe.mode} mixes no kinds of tasks"),
        (["chat_model"], mode.start == "base", f"mode {recipe.mode} starts from the base model"),
        (["model"], mode.start == "chat" and recipe.chat_model, f"mode {recipe.mode} starts from chat_model"),
        (["prefix_init_text"], recipe.prefix_init == "random", "prefix_init is random"),
        (["pocket_seed", "pocket_related"], facts.pocket is False, "the start model is no pocket's"),
        (["library_fields"], recipe.domain != "libraries", "domain is not libraries"),
        (["domain_text", "domain_tasks"], True, f"mode {recipe.mode} trains on none, so it is a probe only"),
    )
    return [f"{name} is set and not used: {why}" for names, holds, why in cases for name in FIELDS
            if holds and name in names and name not in mode.roles and _is_set(name, full, facts)]


def _is_set(name: str, full: Recipe, facts: Facts) -> bool:
    """Whether a field of a resolved recipe has another value than it has, or is given, by itself."""
    value, advise = getattr(full, name), ADVISED.get(name)
    return value != (advise(full, facts).value if advise else FIELDS[name].default)
