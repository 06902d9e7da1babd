"""A recipe made ready: data read, tokenizer loaded, checked, measured and resolved; no weights yet.

Everything that can fail for bad input fails here, before a model is loaded.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from . import (
    advice,
    blocks,
    data,
    encoded,
    evaluate,
    hyperparameters,
    methods,
    models,
    modes,
    pocket,
    ranks,
    spell,
    template,
)
from .errors import BadInput
from .recipe import Recipe, override, stage_settings

EXTRAS = "where sftbench lies: pip install -c requirements.lock -e '.[eval,track]'"  # as README says it
LIVE_ROWS = 64  # rows of each probe scored while a stage trains, and for advice; between stages all are


@dataclass
class Prepared:
    """A recipe made ready: resolved, with its data read and its tokenizer loaded; no weights yet."""

    recipe: Recipe
    reasons: dict[str, str]
    mode: dict
    stages: list[dict]
    roles: dict[str, data.Role]
    tokenizer: PreTrainedTokenizerBase
    start: str
    revision: str
    known: dict
    tokens: dict[str, encoded.Tokens]
    pieces: dict[str, encoded.Pieces]
    warnings: tuple[str, ...] = ()  # where what was asked for is far from advised, or does not fit
    expected: tuple[set, dict] | None = None  # stages stored by then, and the forecast that was made


def prepare(recipe: Recipe) -> Prepared:
    """Check the recipe, read and encode its data, and resolve it; raises BadInput with the remedy."""
    models.quiet_libraries()
    mode = modes.load(recipe.mode)
    stages = modes.stages(mode, recipe.general_share, recipe.task_share)
    modes.check_methods(recipe, stages)
    check_machine(recipe)
    start = modes.start_model(recipe, mode)
    models.load_config(start, recipe.model_revision)
    roles = data.load_roles(recipe)
    check_roles(recipe, stages, roles)
    tokenizer = models.load_tokenizer(start, recipe.model_revision)
    tokens = {name: encoded.encode(tokenizer, role) for name, role in roles.items()}
    known = measure(start, recipe.model_revision, tokenizer, roles, tokens)
    resolved, reasons = advice.resolve(recipe, known)
    reasons |= hyperparameters.notes(resolved, known) | {"chat_template": template.describe(tokenizer)}
    settings = [stage_settings(resolved, stage["kind"]) for stage in stages]
    for once in {one["method"]: one for one in settings}.values():  # kinds of stages share a method's options
        methods.check(models.load_config(start, recipe.model_revision), once)
    pieces = cut_roles(resolved, stages, roles, tokens)
    revision = models.revision_of(start, recipe.model_revision)
    if not Path(models.locate(start)).is_dir():  # a hub name: from here on, this commit of it
        resolved = override(resolved, model_revision=revision)
    return Prepared(resolved, reasons, mode, stages, roles, tokenizer, start, revision, known, tokens, pieces,
                    tuple(advice.warnings(recipe, known)))


def check_machine(recipe: Recipe) -> None:
    """Refuse what is not installed, or does not go with the way the processes were started."""
    if ranks.sharded() and "qlora" in (recipe.method, recipe.cpt_method):
        raise BadInput("qlora does not go with FSDP here: its 4-bit weights are not sharded; take lora, or "
                       "torchrun without FSDP")
    if recipe.bf16 and not models.has_bf16():
        raise BadInput(f"bf16: this machine's {models.device().type.upper()} does not compute in bfloat16; "
                       "leave bf16 out, or set it to false")
    if recipe.report_to and importlib.util.find_spec(recipe.report_to) is None:
        raise BadInput(f"report_to: {recipe.report_to} is not installed; {EXTRAS}")


def cut_roles(recipe: Recipe, stages: list[dict], roles: dict[str, data.Role],
              tokens: dict[str, encoded.Tokens]) -> dict[str, encoded.Pieces]:
    """What of each role can train within max_length; tasks that cannot are recorded as dropped.

    Raises BadInput where a stage's role has not one token to train.
    """
    found = {}
    for name, role in roles.items():
        found[name], reasons = encoded.cut(tokens[name], recipe.max_length, name.endswith("_text"))
        for stage in stages:
            if name in stage["shares"]:
                encoded.refuse_nothing(found[name], name, f"stage {stage['name']}", recipe.max_length,
                                       reasons)
        for reason, rows in reasons.items():
            role.drop(reason, role.chosen[rows])
    return found


def check_roles(recipe: Recipe, stages: list[dict], roles: dict[str, data.Role]) -> None:
    """Refuse a mode that draws from a role without data, naming the role and what would serve."""
    for stage in stages:
        for role in stage["shares"]:
            if role in roles and "also in the probe" in roles[role].dropped and not roles[role].train:
                raise BadInput(f"mode {recipe.mode}, stage {stage['name']}: every row of {role} is also in "
                               f"its probe, so none is left to train on; give another {role}_probe")
            if role not in roles or not roles[role].train:
                shape = "text" if role.endswith("_text") else "questions and answers"
                raise BadInput(f"mode {recipe.mode}, stage {stage['name']}: no data for {role}; "
                               f"give a file or folder of {shape} as {role}, "
                               "or take a mode without it")


def measure(start: str, revision: str | None, tokenizer, roles: dict[str, data.Role],
            tokens: dict[str, encoded.Tokens]) -> dict:
    """What advice can know before training: sizes of model and data, and what the device can do."""
    config = models.load_config(start, revision)
    tasks = [name for name in roles if name.endswith("_tasks")]
    lengths = np.sort(np.concatenate([[], *(tokens[name].lengths for name in tasks)]))
    answers = [row["messages"][-1]["content"] for role in roles.values() for row in role.probe
               if "messages" in row]
    known = {
        "rows": {name: len(role.train) for name, role in roles.items()},
        "tokens": {name: int(made.lengths.sum()) for name, made in tokens.items()},
        "device": models.device().type, "bf16": models.has_bf16(), "pocket": start in pocket.FOLDERS,
        "context": getattr(config.get_text_config(), "max_position_embeddings", 2048),
        "vocabulary": config.get_text_config().vocab_size,
        "system_prompts": any(roles[name].rows.about["systems"] for name in tasks),
        "task_types": len({kind for name in tasks for kind in roles[name].rows.about["types"]})}
    if len(lengths):
        known["row_tokens"] = int(lengths[int(len(lengths) * 0.99)])
    if answers:
        known["answer_tokens"] = max(len(tokenizer(text)["input_ids"]) for text in answers)
    return known | models.count_parameters(config) | models.card_of(start, revision)


def advise(recipe: Recipe, said: dict, with_losses: bool = True, settle_mode: bool = False) -> str:
    """The advice as text for this recipe's data and model; `said` is what the user wants and has.

    `with_losses` loads the start model and measures its loss on the probes, which answers R1 by itself.
    `settle_mode` gives values and warnings for the suggested mode instead of the recipe's. Unlike `prepare`,
    it works with whatever roles have data.
    """
    models.quiet_libraries()
    start = modes.start_model(recipe, modes.load(recipe.mode))
    roles, tokenizer = data.load_roles(recipe), models.load_tokenizer(start, recipe.model_revision)
    tokens = {name: encoded.encode(tokenizer, role) for name, role in roles.items()}
    known = measure(start, recipe.model_revision, tokenizer, roles, tokens) | said
    if with_losses and roles:
        known["base_loss"] = probe_losses(models.load_model(start, recipe.model_revision), tokenizer, roles)
    if settle_mode:
        recipe = override(recipe, mode=advice.suggest_mode(known)[0])
    rows = ", ".join(f"{name} {len(role.train):,} rows" for name, role in roles.items())
    return (f"For {start}, with {rows or 'no data yet'}.\n\n{advice.explain(recipe, known)}\n\n"
            f"next: {spell.as_command(recipe)}")


def probe_losses(model, tokenizer, roles: dict[str, data.Role]) -> dict[str, float]:
    """The model's loss on a part of each role's probe, in nats per token."""
    probes = {name: blocks.encode_rows(tokenizer, role.probe[:LIVE_ROWS], 1024)[0]
              for name, role in roles.items()}
    return {name: round(evaluate.loss(model, rows, tokenizer.pad_token_id), 3)
            for name, rows in probes.items() if rows}
