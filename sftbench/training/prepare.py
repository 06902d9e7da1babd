"""A recipe prepared: data read, tokenizer loaded, checked, measured and resolved; no weights yet.

Everything that can fail for bad input fails here, before a model is loaded.
"""

import importlib.util
import math
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .. import __version__
from ..data import tokenization
from ..data.chat_template import describe_template
from ..data.packing import block_tokens, build_stage_dataset, count_steps
from ..data.roles import Role, check_roles, keep_best_key, load_roles, role_warnings
from ..data.tokenization import EncodedRow, RoleTokens
from ..distributed import is_sharded, process_count
from ..errors import BadInput
from ..evaluation.benchmarks import INSTALL_EXTRAS
from ..evaluation.probes import probe_losses
from ..evaluation.reading import wanted_ids
from ..evaluation.scoring import ProbeSet, prompt_alone
from ..models import loading
from ..models.architecture import measure_architecture
from ..models.checkpoint import ModelState, start_key
from ..models.start_model import ask_start_model, check_positions, check_vocabulary, longest_prompt
from ..named.models import origin_reason
from ..named.self_replay import settle_self_replay
from ..pocket import FOLDERS
from ..recipes.facts import Facts
from ..recipes.hyperparameters import resolve_recipe
from ..recipes.modes import Mode, StagePlan, check_method_chain, find_start_model, load_mode, recipe_stages
from ..recipes.pretraining_rates import add_pretraining
from ..recipes.recipe import ROLES, Recipe, override
from ..recipes.rules import Advice, advise, suggest_mode
from ..recipes.stages import Stage, derived_settings, stage_settings
from ..recipes.warnings import recipe_warnings, settings_without_effect
from ..runs.stage_store import has_stage, hash_key
from ..templates.rendering import RenderSettings, render_settings

# Rows of each probe scored while a stage trains, at least and at most: as many as make eight scorings read
# a tenth of the tokens of the shortest stage. Between stages all rows are scored; for advice the most.
LIVE_ROWS, LIVE_SHARE = (16, 64), 0.1 / 8
ADVICE_LENGTH = 1024  # tokens of a row that count for advice, where no recipe is resolved yet
# What decides what training yields, beside this package.
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")


@dataclass
class PreparedRun:
    """A resolved recipe with its data read and its tokenizer loaded; no weights yet."""

    recipe: Recipe
    reasons: dict[str, str]  # why each advised value is what it is
    mode: Mode
    stages: tuple[Stage, ...]
    roles: dict[str, Role]
    tokenizer: PreTrainedTokenizerBase
    start: str  # folder or hub name of the start model
    revision: str
    facts: Facts
    tokens: dict[str, RoleTokens]
    pieces: dict[str, np.recarray]
    warnings: tuple[str, ...] = ()  # where a value is far from the advised one, or does not fit
    forecast: tuple[list[Stage], dict] | None = None  # the stages untrained by then, and the forecast

    @cached_property
    def datasets(self) -> dict[str, tuple[Dataset, dict]]:
        """Each stage's blocks in training order, and what each role gave (rows, tokens, share, dropped)."""
        return {stage.name: stage_dataset(self, stage) for stage in self.stages}

    @cached_property
    def plan(self) -> dict[str, int]:
        """The optimiser steps of each stage."""
        return {stage.name: count_steps(self.datasets[stage.name][0], stage.settings)
                for stage in self.stages}

    @property
    def probes(self) -> ProbeSet:
        """The held-out rows, and how they are scored."""
        rows = {name: self.roles[name].probe for name in ROLES if name in self.roles}
        return ProbeSet(rows, self.tokenizer, self.recipe.max_length, self.recipe.max_new_tokens,
                        self.recipe.yardstick, self.recipe.scorer)

    @cached_property
    def prompted(self) -> tuple[ProbeSet, int] | None:
        """The domain's probe with training rows in its prompts, and their number; see `prompt_alone`."""
        room = self.facts.positions or self.facts.context or ADVICE_LENGTH
        role = self.roles.get("domain_tasks")
        return role and prompt_alone(self.probes, "domain_tasks", role.sample_rows(64), room,
                                     self.recipe.prompt_examples)

    @cached_property
    def live_probes(self) -> dict[str, list[EncodedRow]]:
        """The part of each probe that is scored while a stage trains."""
        return self.encode_live_probes(self.tokenizer)

    def encode_live_probes(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[EncodedRow]]:
        """The live probes as tokens of this tokenizer."""
        shortest = min(int(block_tokens(self.datasets[stage.name][0])[
            :self.plan[stage.name] * stage.settings.blocks_per_step].sum()) for stage in self.stages)
        return encode_live_probes(tokenizer, self.roles, self.recipe.max_length, shortest * LIVE_SHARE)

    def untrained_stages(self, store: Path) -> list[Stage]:
        """The stages that are not in the store yet."""
        return [stage for stage in self.stages if not has_stage(store, stage.key)]

    def start_state(self, store: Path) -> ModelState:
        """The model before the first stage."""
        return ModelState(start_key(self.revision), store, self.start, self.recipe.model_revision)


def prepare_recipe(recipe: Recipe) -> PreparedRun:
    """Check the recipe, read and encode its data, and resolve it; raises BadInput with the remedy."""
    from ..models.methods import check_parts  # here, since PEFT takes a second to load, and a look needs none
    loading.silence_libraries()
    mode = load_mode(recipe.mode)
    plans = recipe_stages(recipe, mode)
    check_method_chain(recipe)
    check_machine(recipe)
    start = find_start_model(recipe, mode)
    config = loading.load_model_config(start, recipe.model_revision)
    roles = load_roles(recipe := settle_self_replay(recipe, start))
    check_roles(recipe, plans, roles)
    tokenizer = loading.load_recipe_tokenizer(start, recipe)
    recipe = override(recipe, template_date=render_settings(tokenizer).date)
    tokens = {name: tokenization.encode_role(tokenizer, role) for name, role in roles.items()}
    facts = measure_facts(config, start, tokenizer, roles, tokens)
    check_vocabulary(tokenizer, roles, tokens, facts.vocabulary)
    revision = loading.resolve_revision(start, recipe.model_revision)
    kinds = tuple(dict.fromkeys(plan.kind for plan in plans))
    for kind in kinds:
        settings = stage_settings(resolve_recipe(recipe, facts)[0], kind)
        config = check_parts(config, settings)
        facts = ask_start_model(recipe, settings, facts, start, revision)
    resolved, advised = resolve_recipe(recipe, facts)
    if facts.positions:
        check_positions([stage_settings(resolved, kind) for kind in kinds], resolved, facts)
    reasons = origin_reason(start) | {name: str(value) for name, value in advised.items()}
    uses = {use for role in roles.values() for use in role.rows.uses}
    reasons |= derived_settings(resolved, facts) | {"chat_template": describe_template(tokenizer, uses)}
    pieces = cut_roles(resolved, plans, roles, tokens)
    if not (is_folder := Path(loading.locate_model(start)).is_dir()):  # a hub name: from here on this commit
        resolved = override(resolved, model_revision=revision)
    ready = PreparedRun(resolved, reasons, mode, _resolve_stages(resolved, plans, roles, revision), roles,
                        tokenizer, start, revision, facts, tokens, pieces,
                        (*recipe_warnings(recipe, facts), *settings_without_effect(recipe, is_folder, uses),
                         *(warning for name, role in roles.items()
                           for warning in (*role_warnings(name, role), *_left_out(name, role)))))
    ready.probes.check()
    split = [name for name in roles if not getattr(recipe, f"{name}_probe")]
    return replace(ready, warnings=(*ready.warnings, *ready.probes.warnings(split)))


def _left_out(name: str, role: Role) -> list[str]:
    """How many of a role's rows the run leaves out for what they are."""
    reasons = [f"{reason}: {dropped['rows']:,}" for reason, dropped in role.dropped.items()
               if reason in ("cannot be used", "task longer than max_length", "nothing to train")]
    return [f"{name}: rows are left out, of {len(role.chosen):,} to train ({'; '.join(reasons)}); "
            "recipe.json names some, and sftbench check says what to do"] if reasons else []


def _resolve_stages(recipe: Recipe, plans: tuple[StagePlan, ...], roles: dict[str, Role],
                    revision: str) -> tuple[Stage, ...]:
    """The stages with their settings, and their keys: each a hash of all that decides its result."""
    stages, parent = [], start_key(revision)
    # several processes train as one with a larger batch, which is another training
    more = ({"processes": process_count()} if process_count() > 1 else {}) | keep_best_key(recipe, roles)
    rendering = RenderSettings(recipe.template_date, recipe.train_thoughts).changed()
    for plan in plans:
        settings = stage_settings(recipe, plan.kind)
        parent = hash_key(
            parent=parent, kind=plan.kind, shares=plan.shares, settings=settings.for_key(),
            data={role: roles[role].digest for role in plan.shares}, versions=library_versions(), **more,
            **(rendering if any(role.endswith("_tasks") for role in plan.shares) else {}))
        stages.append(Stage(plan.name, plan.kind, plan.shares, settings, parent))
    return tuple(stages)


def library_versions() -> dict[str, str]:
    """The versions of this package and of the libraries that decide what training yields."""
    return {"sftbench": __version__} | {name: version(name) for name in LIBRARIES}


def check_machine(recipe: Recipe) -> None:
    """Refuse what is not installed, or does not go with the way the processes were started."""
    if is_sharded() and "qlora" in (recipe.method, recipe.cpt_method):
        raise BadInput("qlora does not go with FSDP here: its 4-bit weights are not sharded; take lora, or "
                       "torchrun without FSDP", field="method")
    if recipe.bf16 and not loading.supports_bf16():
        raise BadInput(f"bf16: this machine's {loading.select_device().type.upper()} does not compute in "
                       "bfloat16; leave bf16 out, or set it to false", field="bf16")
    if recipe.report_to and importlib.util.find_spec(recipe.report_to) is None:
        raise BadInput(f"report_to: {recipe.report_to} is not installed; {INSTALL_EXTRAS}", field="report_to")


def cut_roles(recipe: Recipe, plans: tuple[StagePlan, ...], roles: dict[str, Role],
              tokens: dict[str, RoleTokens]) -> dict[str, np.recarray]:
    """What of each role can train within max_length; tasks that cannot are recorded as dropped.

    Raises BadInput where a stage's role has not one token to train.
    """
    pieces = {}
    for name, role in roles.items():
        pieces[name], reasons = tokenization.cut_rows(tokens[name], recipe.max_length, name.endswith("_text"))
        for stage in [f"stage {plan.name}" for plan in plans if name in plan.shares]:
            tokenization.refuse_untrainable(pieces[name], name, stage, recipe.max_length, reasons)
        for reason, rows in reasons.items():
            role.drop(reason, role.chosen[rows])
    return pieces


def stage_dataset(ready: PreparedRun, stage: Stage) -> tuple[Dataset, dict]:
    """The stage's blocks in training order, and what each role gave (rows, tokens, share, dropped)."""
    dataset, drawn = build_stage_dataset(
        ready.tokens, ready.pieces, {name: role.times for name, role in ready.roles.items()},
        stage.shares, stage.settings)
    for role, figures in drawn.items():
        figures["dropped"] = {reason: dropped["rows"]
                              for reason, dropped in ready.roles[role].dropped.items()}
    return dataset, drawn


def encode_live_probes(tokenizer, roles: dict[str, Role], max_length: int,
                       tokens: float = math.inf) -> dict[str, list[EncodedRow]]:
    """The first rows of each probe, of about so many tokens; roles none of whose rows fits are left out."""
    least, most = LIVE_ROWS
    encoded = {name: tokenization.encode_probe(tokenizer, role.probe[:most], max_length)[0]
               for name, role in roles.items()}
    ends = {name: np.cumsum([len(row.input_ids) for row in rows]) for name, rows in encoded.items()}
    return {name: rows[:max(least, int(np.searchsorted(ends[name], tokens)))]
            for name, rows in encoded.items() if rows}


def measure_facts(config, start: str, tokenizer, roles: dict[str, Role],
                  tokens: dict[str, RoleTokens]) -> Facts:
    """What advice can know before training: sizes of model and data, and what the device can do."""
    tasks = [name for name in roles if name.endswith("_tasks")]
    # of each role by itself, so that few long rows of one's own do not vanish among another's short ones
    longest = [int(np.sort(lengths)[int(len(lengths) * 0.99)]) for name in tasks
               if len(lengths := tokens[name].lengths)]
    answers = [wanted_ids(tokenizer, row) for role in roles.values() for row in role.probe
               if "messages" in row]
    facts = Facts().add(
        "measured",
        rows={name: len(role.train) for name, role in roles.items()},
        tokens={name: int(encoded.lengths.sum()) for name, encoded in tokens.items()},
        row_tokens=max(longest, default=None),
        answer_tokens=max(map(len, answers), default=None),
        task_types=len({kind for name in tasks for kind in roles[name].rows.about["types"]}),
        system_prompts=any(roles[name].rows.about["systems"] for name in tasks),
        pocket=start in FOLDERS, device=loading.select_device().type, bf16=loading.supports_bf16(),
        **(architecture := measure_architecture(config)),
        prompt_tokens=longest_prompt(tokenizer, roles) if architecture["positions"] else None)
    return add_pretraining(facts, config.to_dict())


def advise_recipe(recipe: Recipe, stated: dict, with_losses: bool = True,
                  settle_mode: bool = False) -> Advice:
    """The advice for this recipe's data and model; `stated` is what the user wants and has (see `Facts`).

    `with_losses` loads the start model and measures its loss on a part of the probes, which answers R1.
    `settle_mode` gives values and warnings for the suggested mode instead of the recipe's. Unlike
    `prepare_recipe`, it works with the roles that have data.
    """
    loading.silence_libraries()
    start = find_start_model(recipe)
    recipe = settle_self_replay(recipe, start)
    roles, tokenizer = load_roles(recipe), loading.load_recipe_tokenizer(start, recipe)
    tokens = {name: tokenization.encode_role(tokenizer, role) for name, role in roles.items()}
    config = loading.load_model_config(start, recipe.model_revision)
    facts = measure_facts(config, start, tokenizer, roles, tokens).add("stated", **stated)
    if with_losses and roles:
        probes = encode_live_probes(tokenizer, roles, ADVICE_LENGTH)
        losses = probe_losses(loading.load_model(start, recipe.model_revision), tokenizer, probes)
        facts = facts.add("measured", base_loss={name: round(loss, 3) for name, loss in losses.items()})
        facts = ask_start_model(recipe, stage_settings(resolve_recipe(recipe, facts)[0], "sft"), facts, start,
                                loading.resolve_revision(start, recipe.model_revision))
    if settle_mode:
        recipe = override(recipe, mode=suggest_mode(facts)[0])
    return advise(recipe, facts)
