"""The handbook of the installed libraries: facts about TRL, PEFT and transformers as text and as questions.

Everybody who trains has these libraries, and no model was trained on their newest versions. By introspection
each field of a configuration and each parameter of a function gives facts: which class or function has it,
its default, its type. As in the pocket, *statements* cover every field and *questions* only two thirds of
them; about the other third only the probe asks, so a right answer must come from reading.
"""

import contextlib
import hashlib
import importlib
import inspect
import random
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from ..errors import BadInput

LIBRARIES = ("trl", "peft", "transformers")
# of transformers only these: its other modules are a model's own, and older than what is trained on them
MODULES = {"transformers": ("transformers.training_args", "transformers.utils.quantization_config",
                            "transformers.optimization")}
# paragraphs about each field, by number: no two state the default in the same words
TEXTS = {"train": range(8), "probe": range(8, 9)}
LONGEST = 32  # characters of an answer, so that it can be compared exactly
MOST_ALIKE = 1 / 16  # of the fields may have the same default, or the same owner: guessing gains little
_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
STATEMENTS, QUESTIONS = _TABLES["statements"], _TABLES["questions"]


@dataclass(frozen=True)
class Fact:
    """A field of a class, or a parameter of a function, as it is installed; all fields are text."""

    library: str
    kind: str  # class or function
    owner: str
    part: str  # field or parameter
    name: str
    type: str
    default: str


def describe_libraries() -> str:
    """The versions that the handbook is of."""
    return "libraries (" + ", ".join(f"{library} {version(library)}" for library in LIBRARIES) + ")"


@lru_cache
def installed_facts() -> tuple[Fact, ...]:
    """Every fact of the installed libraries whose name no other public class or function of them has.

    The order is that of a hash, so that another version moves only what it changes.
    """
    facts, owners = [], Counter()
    for library in LIBRARIES:
        for owner, thing in _public(library):
            known = _parameters(thing)
            owners.update(set(known))
            inherited = {name for base in getattr(thing, "__mro__", ())[1:] for name in _parameters(base)}
            facts += [fact for name, parameter in known.items() if name not in inherited
                      and (fact := _fact(library, owner, thing, parameter))]
    return tuple(sorted((fact for fact in facts if owners[fact.name] == 1),
                        key=lambda fact: hashlib.sha256(fact.name.encode()).digest()))


def _public(library: str) -> Iterator[tuple[str, object]]:
    """The configurations and functions of a library, by name; what lacks a package of its own is left out."""
    for module in map(importlib.import_module, MODULES.get(library, (library,))):
        for name in sorted(dir(module)):
            if name.endswith(("Config", "Arguments")) or name.islower() and name[0] != "_" and "_" in name:
                with contextlib.suppress(ImportError, RuntimeError):
                    thing = getattr(module, name)
                    if (inspect.isclass(thing) or inspect.isfunction(thing)) and (
                            f"{thing.__module__}.".startswith(f"{module.__name__}.")):
                        yield name, thing


def _parameters(thing: object) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(thing).parameters)
    except (TypeError, ValueError):  # object, and what is written in C
        return {}


def _fact(library: str, owner: str, thing: object, parameter: inspect.Parameter) -> Fact | None:
    """The fact of one parameter; None if it has no default, no short text says it, or prose has its name."""
    default, declared = parameter.default, parameter.annotation
    if isinstance(default, Enum):
        default = default.value
    plain = default is None or isinstance(default, (bool, int, float, str))
    text = str(default) if plain else ""
    if declared is inspect.Parameter.empty or "_" not in parameter.name or not text.isprintable() or not text:
        return None
    kind, part = ("class", "field") if inspect.isclass(thing) else ("function", "parameter")
    stated = declared if isinstance(declared, str) else inspect.formatannotation(declared)
    fact = Fact(library, kind, owner, part, parameter.name, stated.replace("typing.", ""), text)
    return fact if max(len(text), len(owner), len(fact.type) / 2) <= LONGEST else None


@lru_cache
def chosen_facts(size: int) -> tuple[Fact, ...]:
    """The first facts, of which few share a default or an owner; raises BadInput where there are fewer."""
    most, defaults, owners, chosen = max(2, round(size * MOST_ALIKE)), Counter(), Counter(), []
    for fact in installed_facts():
        if defaults[fact.default] < most and owners[fact.owner] < most:
            defaults[fact.default] += 1
            owners[fact.owner] += 1
            chosen.append(fact)
    if len(chosen) < size:
        raise BadInput(f"library_fields {size}: the installed libraries have {len(chosen)} such fields, if "
                       "few share a default; take at most so many", field="library_fields")
    return tuple(chosen[:size])


def library_rows(role: str, split: str, size: int) -> list[dict]:
    """The rows of `domain_text` ({"text"}) or `domain_tasks` ({"messages"}); equal libraries, equal rows.

    `split` is train or probe: training questions are about the first two thirds of the facts, those of the
    probe about the others, one of each kind in one wording. Raises BadInput where `size` is too large.
    """
    facts, rng = chosen_facts(size), random.Random(f"{role} {split}")
    border = size * 2 // 3
    if role == "domain_text":
        rows = [{"text": text} for fact in facts for text in _paragraphs(fact, split)]
    else:
        about = facts[:border] if split == "train" else facts[border:]
        rows = [_question(fact, kind, wording) for fact in about for kind, wordings in QUESTIONS.items()
                for wording in (wordings if split == "train" else [rng.choice(wordings)])]
    rng.shuffle(rows)
    return rows


def _paragraphs(fact: Fact, split: str) -> list[str]:
    """Texts that each state all of a fact; its wordings are dealt out so that each is used about as often."""
    rng = random.Random(f"{fact.owner} {fact.name}")
    dealt = {kind: rng.sample(wordings, len(wordings)) for kind, wordings in STATEMENTS.items()}
    texts = []
    for number in TEXTS[split]:
        sentences = [dealt[kind][number % len(dealt[kind])].format(**asdict(fact)) for kind in dealt]
        rng.shuffle(sentences)
        texts.append(" ".join(sentences))
    return texts


def _question(fact: Fact, kind: str, wording: str) -> dict:
    return {"messages": [{"role": "user", "content": wording.format(**asdict(fact))},
                         {"role": "assistant", "content": getattr(fact, kind)}]}
