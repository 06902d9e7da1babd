"""The modes: named chains of stages from a base or a chat model, as plain data.

A stage states its kind (`cpt` or `sft`) and the share of each role in its data. Shares are parts of the
stage's tokens, as rows differ too much in length for shares of rows to mean anything; one epoch is one pass
over the stage's first role. A mode of your own is a small TOML file of the same shape:

    name = "cpt_sft_with_text"
    sentence = "CPT, then SFT with a little of the text mixed in."
    start = "base"
    [[stages]]
    name = "cpt"
    kind = "cpt"
    shares = { domain_text = 1.0 }
"""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput
from .recipe import ROLES, Recipe, suggest_name


@dataclass(frozen=True)
class StagePlan:
    """A stage of a mode before any recipe: `shares` are parts of its tokens by role and add up to 1."""

    name: str
    kind: str  # cpt or sft
    shares: dict[str, float]


@dataclass(frozen=True)
class Mode:
    """A chain: where it starts (`base` or `chat`) and its stages in order, with one sentence for people."""

    name: str
    sentence: str
    start: str
    stages: tuple[StagePlan, ...]

    @property
    def roles(self) -> list[str]:
        """The roles that its stages draw from, each once, in order of first use."""
        return list(dict.fromkeys(role for stage in self.stages for role in stage.shares))


_CPT = StagePlan("cpt", "cpt", {"domain_text": 1.0})
_CPT_MIXED = StagePlan("cpt_mixed", "cpt", {"domain_text": 0.7, "general_tasks": 0.2, "domain_tasks": 0.1})
_GENERAL_SFT = StagePlan("general_sft", "sft", {"general_tasks": 1.0})
_DOMAIN_SFT = StagePlan("domain_sft", "sft", {"domain_tasks": 1.0})
_MIXED_SFT = StagePlan("mixed_sft", "sft", {"domain_tasks": 1 / 3, "general_tasks": 2 / 3})

MODES = {
    "1": Mode("base_sft", "Teach a base model the domain's tasks, and nothing before.", "base",
              (_DOMAIN_SFT,)),
    "2": Mode("base_cpt_sft", "Read the domain's text first, then learn its tasks: a specialist.", "base",
              (_CPT, _DOMAIN_SFT)),
    "3": Mode("base_cpt_general_sft_domain_sft",
              "Read, learn to answer in general, then in the domain: two-stage SFT.", "base",
              (_CPT, _GENERAL_SFT, _DOMAIN_SFT)),
    "4": Mode("base_cpt_mixed_sft", "Read, then learn general and domain tasks side by side.", "base",
              (_CPT, _MIXED_SFT)),
    "5": Mode("base_mixed_cpt_mixed_sft",
              "Meet tasks already while reading, then learn both kinds side by side.", "base",
              (_CPT_MIXED, _MIXED_SFT)),
    "6": Mode("chat_sft", "Teach a chat model the domain's tasks: cheapest, if little is to be learnt.",
              "chat", (_DOMAIN_SFT,)),
    "7": Mode("chat_cpt_sft", "Let a chat model read the domain's text, then learn its tasks.", "chat",
              (_CPT, _DOMAIN_SFT)),
}


def load_mode(mode: str) -> Mode:
    """The mode of this number or name, or of this TOML file; raises BadInput with the nearest name."""
    mode = str(mode)
    if mode in MODES:
        return MODES[mode]
    for entry in MODES.values():
        if mode == entry.name:
            return entry
    if mode.endswith(".toml"):
        return _read_mode_file(Path(mode).expanduser())
    names = [*MODES, *(entry.name for entry in MODES.values())]
    near = "" if mode.isdigit() else suggest_name(mode, names)  # 12 is not a slip for 2
    raise BadInput(f"unknown mode {mode!r}{near}; give 1 to 7, or the path of a .toml file", field="mode")


def recipe_stages(recipe: Recipe, mode: Mode | None = None) -> tuple[StagePlan, ...]:
    """The stages of the recipe's mode with its two mixing knobs applied.

    `task_share` is the part of tasks in a CPT stage that mixes them in, `general_share` the part of general
    tasks among all tasks of a stage that holds both kinds.
    """
    return tuple(dataclasses.replace(stage, shares=_mixed_shares(stage, recipe))
                 for stage in (mode or load_mode(recipe.mode)).stages)


def format_chain(mode: Mode) -> str:
    """The chain as a line of text: its start, and each stage with the roles it draws from."""
    boxes = [mode.start]
    for stage in mode.stages:
        shares = " + ".join(f"{share:.0%} {role.replace('_', ' ')}" if share < 1 else role.replace("_", " ")
                            for role, share in stage.shares.items())
        boxes.append(f"{stage.kind.upper()} {shares}")
    return "  ->  ".join(f"[ {box} ]" for box in boxes)


def find_start_model(recipe: Recipe, mode: Mode | None = None) -> str:
    """The model the mode starts from; raises BadInput where a chat model is needed and none is named."""
    if (mode or load_mode(recipe.mode)).start == "base":
        return recipe.model
    if recipe.chat_model:
        return recipe.chat_model
    if recipe.model in ("pocket", "pocket-chat"):
        return "pocket-chat"
    raise BadInput(f"mode {recipe.mode} starts from a chat model: name one as chat_model "
                   f"(model is {recipe.model!r})", field="chat_model")


def check_method_chain(recipe: Recipe) -> None:
    """Refuse a chain in which a prefix would have to be handed to another method."""
    chain = [(stage.name, stage_method(recipe, stage.kind)) for stage in load_mode(recipe.mode).stages]
    for (name, method), (later_name, later) in zip(chain, chain[1:], strict=False):
        if method == "ptuning_v2" != later:
            raise BadInput(f"stage {name} trains a prefix (ptuning_v2), which cannot be merged into the "
                           f"weights, so stage {later_name} cannot go on with {later}; take ptuning_v2 for "
                           f"both, or another method for {name}", field="method")


def stage_method(recipe: Recipe, kind: str) -> str:
    """The method of stages of this kind: CPT stages may have their own."""
    return recipe.cpt_method or recipe.method if kind == "cpt" else recipe.method


def _mixed_shares(stage: StagePlan, recipe: Recipe) -> dict[str, float]:
    total = sum(stage.shares.values())
    shares = {role: share / total for role, share in stage.shares.items()}
    tasks = [role for role in shares if role.endswith("_tasks")]
    texts = [role for role in shares if role.endswith("_text")]
    if recipe.task_share is not None and stage.kind == "cpt" and tasks and texts:
        _rescale(shares, tasks, recipe.task_share)
        _rescale(shares, texts, 1 - recipe.task_share)
    if recipe.general_share is not None and {"domain_tasks", "general_tasks"} <= set(tasks):
        total = shares["domain_tasks"] + shares["general_tasks"]
        shares["general_tasks"] = total * recipe.general_share
        shares["domain_tasks"] = total * (1 - recipe.general_share)
    return {role: round(share, 6) for role, share in shares.items() if share > 0}


def _rescale(shares: dict[str, float], names: list[str], total: float) -> None:
    """Scale the shares of these roles, in place, so that they add up to `total`."""
    before = sum(shares[name] for name in names)
    for name in names:
        shares[name] *= total / before


def _read_mode_file(path: Path) -> Mode:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such mode file", field="mode", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a TOML file: {error}", field="mode", where=str(path)) from None
    for key in ("name", "sentence", "start", "stages"):
        if not values.get(key):
            raise BadInput(f"{path}: the mode lacks {key!r}", field=key, where=str(path))
    if values["start"] not in ("base", "chat"):
        raise BadInput(f"{path}: start must be 'base' or 'chat', not {values['start']!r}", field="start",
                       where=str(path))
    if not isinstance(values["stages"], list) or not all(isinstance(one, dict) for one in values["stages"]):
        raise BadInput(f"{path}: stages must be a list of tables; write [[stages]] above each stage",
                       field="stages", where=str(path))
    stages: list[StagePlan] = []
    for number, stage in enumerate(values["stages"], 1):
        stages.append(_read_stage(f"{path}: stage {number}", stage, {earlier.name for earlier in stages}))
    return Mode(values["name"], values["sentence"], values["start"], tuple(stages))


def _read_stage(where: str, values: dict, taken: set[str]) -> StagePlan:
    """A stage of a mode file; raises BadInput for a name that is taken, an unknown kind or role, no share."""
    name, kind, shares = values.get("name", ""), values.get("kind"), values.get("shares")
    if not isinstance(name, str) or not name.isidentifier() or name in taken:
        raise BadInput(f"{where}: name must be a plain word of its own (letters, digits, _), not {name!r}",
                       field="name", where=where)
    if kind not in ("cpt", "sft"):
        raise BadInput(f"{where}: kind must be 'cpt' or 'sft', not {kind!r}", field="kind", where=where)
    if not isinstance(shares, dict) or not shares:
        raise BadInput(f"{where}: shares must name at least one role, as {{ domain_text = 1.0 }}",
                       field="shares", where=where)
    for role, share in shares.items():
        if role not in ROLES:
            raise BadInput(f"{where}: unknown role {role!r}{suggest_name(role, ROLES)}; "
                           f"roles are {', '.join(ROLES)}", field=role, where=where)
        if type(share) not in (int, float) or not 0 < share < float("inf"):
            raise BadInput(f"{where}: the share of {role} must be a number above 0, not {share!r}",
                           field=role, where=where)
    total = sum(shares.values())
    return StagePlan(name, kind, {role: share / total for role, share in shares.items()})
