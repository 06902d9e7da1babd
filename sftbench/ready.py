"""A recipe made ready: data read, tokenizer loaded, checked, measured and resolved; no weights yet.

Everything that can fail for bad input fails here, before a model is loaded.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from . import advice, blocks, data, evaluate, models, modes, pocket, template
from .errors import BadInput
from .recipe import Recipe, override

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


def prepare(recipe: Recipe) -> Prepared:
    """Check the recipe, read and encode its data, and resolve it; raises BadInput with the remedy."""
    models.quiet_libraries()
    mode = modes.load(recipe.mode)
    stages = modes.stages(mode, recipe.general_share, recipe.task_share)
    modes.check_methods(recipe, stages)
    start = modes.start_model(recipe, mode)
    models.load_config(start, recipe.model_revision)
    roles = data.load_roles(recipe)
    check_roles(recipe, stages, roles)
    tokenizer = models.load_tokenizer(start, recipe.model_revision)
    known = measure(start, recipe.model_revision, tokenizer, roles)
    resolved, reasons = advice.resolve(recipe, known)
    reasons["chat_template"] = template.describe(tokenizer)
    revision = models.revision_of(start, recipe.model_revision)
    return Prepared(resolved, reasons, mode, stages, roles, tokenizer, start, revision, known)


def check_roles(recipe: Recipe, stages: list[dict], roles: dict[str, data.Role]) -> None:
    """Refuse a mode that draws from a role without data, naming the role and what would serve."""
    for stage in stages:
        for role in stage["shares"]:
            if role not in roles or not roles[role].train:
                shape = "text" if role.endswith("_text") else "questions and answers"
                raise BadInput(f"mode {recipe.mode}, stage {stage['name']}: no data for {role}; "
                               f"give a file of {shape} as {role} (a .jsonl, or for text a .txt), "
                               "or take a mode without it")


def measure(start: str, revision: str | None, tokenizer, roles: dict[str, data.Role]) -> dict:
    """What advice can know before training: sizes of model and data, and what the device can do."""
    config = models.load_config(start, revision)
    lengths = {name: [len(encoded.input_ids) for row in role.train
                      for encoded in blocks.encode_all(tokenizer, row)] for name, role in roles.items()}
    tasks = sorted(length for name in lengths if name.endswith("_tasks") for length in lengths[name])
    answers = [row["messages"][-1]["content"] for role in roles.values() for row in role.probe
               if "messages" in row]
    known = {
        "rows": {name: len(role.train) for name, role in roles.items()},
        "tokens": {name: sum(counts) for name, counts in lengths.items()},
        "device": models.device().type, "bf16": models.has_bf16(), "pocket": start in pocket.FOLDERS,
        "context": getattr(config.get_text_config(), "max_position_embeddings", 2048),
        "vocabulary": config.get_text_config().vocab_size, "parameters": models.count_parameters(config),
        "system_prompts": any(row["messages"][0]["role"] == "system" for name, role in roles.items()
                              if name.endswith("_tasks") for row in role.train)}
    if tasks:
        known["row_tokens"] = tasks[int(len(tasks) * 0.99)]
    if answers:
        known["answer_tokens"] = max(len(tokenizer(text)["input_ids"]) for text in answers)
    return known | models.card_of(start, revision)


def advise(recipe: Recipe, said: dict, with_losses: bool = True, settle_mode: bool = False) -> str:
    """The advice as text for this recipe's data and model; `said` is what the user wants and has.

    `with_losses` loads the start model and measures its loss on the probes, which answers R1 by itself.
    `settle_mode` gives values and warnings for the suggested mode instead of the recipe's. Unlike `prepare`,
    it works with whatever roles have data.
    """
    models.quiet_libraries()
    start = modes.start_model(recipe, modes.load(recipe.mode))
    roles, tokenizer = data.load_roles(recipe), models.load_tokenizer(start, recipe.model_revision)
    known = measure(start, recipe.model_revision, tokenizer, roles) | said
    if with_losses and roles:
        known["base_loss"] = probe_losses(models.load_model(start, recipe.model_revision), tokenizer, roles)
    if settle_mode:
        recipe = override(recipe, mode=advice.suggest_mode(known)[0])
    return advice.explain(recipe, known)


def probe_losses(model, tokenizer, roles: dict[str, data.Role]) -> dict[str, float]:
    """The model's loss on a part of each role's probe, in nats per token."""
    encoded = {name: blocks.encode_rows(tokenizer, role.probe[:LIVE_ROWS], 1024)[0]
               for name, role in roles.items()}
    return {name: round(evaluate.loss(model, rows, tokenizer.pad_token_id), 3)
            for name, rows in encoded.items() if rows}
