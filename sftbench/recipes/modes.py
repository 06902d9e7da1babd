"""The modes: named chains of stages from a base or a chat model, as plain data.

A stage says its kind (`cpt` or `sft`) and the share of each role in its data. Shares are parts of the stage's
tokens; one epoch is one pass over the stage's first role. A mode of your own is a small TOML file of the same
shape:

    name = "cpt_sft_with_text"
    sentence = "CPT, then SFT with a little of the text kept in."
    start = "base"
    [[stages]]
    name = "cpt"
    kind = "cpt"
    shares = { domain_text = 1.0 }
"""

import tomllib
from pathlib import Path

from ..errors import BadInput
from .recipe import ROLES, Recipe, suggest_name

_CPT = {"name": "cpt", "kind": "cpt", "shares": {"domain_text": 1.0}}
_CPT_MIXED = {"name": "cpt_mixed", "kind": "cpt",
              "shares": {"domain_text": 0.7, "general_tasks": 0.2, "domain_tasks": 0.1}}
_GENERAL_SFT = {"name": "general_sft", "kind": "sft", "shares": {"general_tasks": 1.0}}
_DOMAIN_SFT = {"name": "domain_sft", "kind": "sft", "shares": {"domain_tasks": 1.0}}
_MIXED_SFT = {"name": "mixed_sft", "kind": "sft", "shares": {"domain_tasks": 1 / 3, "general_tasks": 2 / 3}}

MODES = {
    "1": {"name": "base_sft", "start": "base", "stages": (_DOMAIN_SFT,),
          "sentence": "Teach a base model the domain's tasks, and nothing before."},
    "2": {"name": "base_cpt_sft", "start": "base", "stages": (_CPT, _DOMAIN_SFT),
          "sentence": "Read the domain's text first, then learn its tasks: a specialist."},
    "3": {"name": "base_cpt_general_sft_domain_sft", "start": "base",
          "stages": (_CPT, _GENERAL_SFT, _DOMAIN_SFT),
          "sentence": "Read, learn to answer in general, then in the domain: two-stage SFT."},
    "4": {"name": "base_cpt_mixed_sft", "start": "base", "stages": (_CPT, _MIXED_SFT),
          "sentence": "Read, then learn general and domain tasks side by side."},
    "5": {"name": "base_mixed_cpt_mixed_sft", "start": "base", "stages": (_CPT_MIXED, _MIXED_SFT),
          "sentence": "Meet tasks already while reading, then learn both kinds side by side."},
    "6": {"name": "chat_sft", "start": "chat", "stages": (_DOMAIN_SFT,),
          "sentence": "Teach a chat model the domain's tasks: cheapest, if little is to be learnt."},
    "7": {"name": "chat_cpt_sft", "start": "chat", "stages": (_CPT, _DOMAIN_SFT),
          "sentence": "Let a chat model read the domain's text, then learn its tasks."},
}


def load_mode(mode: str) -> dict:
    """The mode of this number or name, or of this TOML file; raises BadInput with the nearest name."""
    mode = str(mode)
    if mode in MODES:
        return MODES[mode]
    for entry in MODES.values():
        if mode == entry["name"]:
            return entry
    if mode.endswith(".toml"):
        return _read_mode_file(Path(mode))
    names = [*MODES, *(entry["name"] for entry in MODES.values())]
    near = "" if mode.isdigit() else suggest_name(mode, names)  # 12 is not a slip for 2
    raise BadInput(f"unknown mode {mode!r}{near}; give 1 to 7, or the path of a .toml file")


def mode_stages(
    mode: dict, general_share: float | None = None, task_share: float | None = None
) -> list[dict]:
    """The mode's stages with the recipe's two mixing knobs applied; shares of each stage add up to 1.

    `task_share` is the part of tasks in a CPT stage that mixes them in, `general_share` the part of general
    tasks among all tasks of a stage that holds both kinds.
    """
    return [{**stage, "shares": _mixed_shares(stage, general_share, task_share)} for stage in mode["stages"]]


def mode_roles(mode: dict) -> list[str]:
    """The roles that the mode's stages draw from, each once, in order of first use."""
    return list(dict.fromkeys(role for stage in mode["stages"] for role in stage["shares"]))


def format_chain(mode: dict) -> str:
    """The chain as a line of text: its start, and each stage with the roles it draws from."""
    boxes = [mode["start"]]
    for stage in mode_stages(mode):
        shares = " + ".join(f"{share:.0%} {role.replace('_', ' ')}" if share < 1 else role.replace("_", " ")
                            for role, share in stage["shares"].items())
        boxes.append(f"{stage['kind'].upper()} {shares}")
    return "  ->  ".join(f"[ {box} ]" for box in boxes)


def find_start_model(recipe: Recipe, mode: dict) -> str:
    """The model the mode starts from; raises BadInput where a chat model is needed and none is named."""
    if mode["start"] == "base":
        return recipe.model
    if recipe.chat_model:
        return recipe.chat_model
    if recipe.model in ("pocket", "pocket-chat"):
        return "pocket-chat"
    raise BadInput(f"mode {recipe.mode} starts from a chat model: name one as chat_model "
                   f"(model is {recipe.model!r})")


def check_method_chain(recipe: Recipe, stages: list[dict]) -> None:
    """Refuse a chain in which a prefix would have to be handed to another method."""
    chain = [(stage["name"], stage_method(recipe, stage)) for stage in stages]
    for (name, method), (later_name, later) in zip(chain, chain[1:], strict=False):
        if method == "ptuning_v2" != later:
            raise BadInput(f"stage {name} trains a prefix (ptuning_v2), which cannot be merged into the "
                           f"weights, so stage {later_name} cannot go on with {later}; take ptuning_v2 for "
                           f"both, or another method for {name}")


def stage_method(recipe: Recipe, stage: dict) -> str:
    """The method of a stage: CPT stages may have their own."""
    return recipe.cpt_method or recipe.method if stage["kind"] == "cpt" else recipe.method


def _mixed_shares(stage: dict, general_share: float | None, task_share: float | None) -> dict:
    total = sum(stage["shares"].values())
    shares = {role: share / total for role, share in stage["shares"].items()}
    tasks = [role for role in shares if role.endswith("_tasks")]
    texts = [role for role in shares if role.endswith("_text")]
    if task_share is not None and stage["kind"] == "cpt" and tasks and texts:
        _rescale(shares, tasks, task_share)
        _rescale(shares, texts, 1 - task_share)
    if general_share is not None and {"domain_tasks", "general_tasks"} <= set(tasks):
        whole = shares["domain_tasks"] + shares["general_tasks"]
        shares["general_tasks"], shares["domain_tasks"] = whole * general_share, whole * (1 - general_share)
    return {role: round(share, 6) for role, share in shares.items() if share > 0}


def _rescale(shares: dict, names: list[str], whole: float) -> None:
    """Scale the shares of these roles, in place, so that they add up to `whole`."""
    old = sum(shares[name] for name in names)
    for name in names:
        shares[name] *= whole / old


def _read_mode_file(path: Path) -> dict:
    try:
        mode = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such mode file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a TOML file: {error}") from None
    for key in ("name", "sentence", "start", "stages"):
        if not mode.get(key):
            raise BadInput(f"{path}: the mode lacks {key!r}")
    if mode["start"] not in ("base", "chat"):
        raise BadInput(f"{path}: start must be 'base' or 'chat', not {mode['start']!r}")
    seen = set()
    for number, stage in enumerate(mode["stages"], 1):
        _check_stage(f"{path}: stage {number}", stage, seen)
    return {**mode, "stages": tuple(mode["stages"])}


def _check_stage(where: str, stage: dict, seen: set) -> None:
    """Raise BadInput unless the stage has a new plain name, a known kind, positive shares of known roles."""
    name = stage.get("name", "")
    if not isinstance(name, str) or not name.isidentifier() or name in seen:
        raise BadInput(f"{where}: name must be a plain word of its own (letters, digits, _), not {name!r}")
    seen.add(name)
    if stage.get("kind") not in ("cpt", "sft"):
        raise BadInput(f"{where}: kind must be 'cpt' or 'sft', not {stage.get('kind')!r}")
    shares = stage.get("shares")
    if not isinstance(shares, dict) or not shares:
        raise BadInput(f"{where}: shares must name at least one role, as {{ domain_text = 1.0 }}")
    for role, share in shares.items():
        if role not in ROLES:
            raise BadInput(f"{where}: unknown role {role!r}{suggest_name(role, ROLES)}; "
                           f"roles are {', '.join(ROLES)}")
        if type(share) not in (int, float) or not 0 < share < float("inf"):
            raise BadInput(f"{where}: the share of {role} must be a number above 0, not {share!r}")
