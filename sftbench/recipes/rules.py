"""Advice: the rules R1 to R16 as code, the mode they add up to, and warnings.

A rule without the facts that it needs stays silent. Losses are in nats per token.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from ..errors import BadInput
from . import hyperparameters
from .facts import Facts
from .modes import MODES
from .recipe import METHOD_OPTIONS, OPTIONS, Recipe
from .warnings import missing_roles, recipe_warnings

PLENTIFUL_TOKENS = 1e9  # tokens of domain text that are worth CPT by themselves
LOSS_GAP = 0.5  # nats per token by which text differs "much": perplexity is then e^0.5 = 1.65 times as high


@dataclass(frozen=True)
class Suggestion:
    """What one rule advises and why; `votes` are for modes by number, below 0 against."""

    rule: str
    advice: str
    reason: str
    votes: dict[str, float] = field(default_factory=dict)


def r1_foreign_text(facts: Facts) -> Suggestion | None:
    """Text unlike what the model has read calls for CPT; the base's loss decides, or else the user."""
    loss = facts.base_loss
    gap = (loss.get("domain_text") or math.nan) - (loss.get("general_text") or math.nan)
    differs = gap > LOSS_GAP if math.isfinite(gap) else facts.differs
    if differs is None:
        return None
    reason = "you say so of your text"
    if math.isfinite(gap):
        reason = (f"its loss on your text is {gap:.2f} nats per token above that on everyday text, and "
                  f"{'more than' if differs else 'only from'} {LOSS_GAP:g} counts as much")
    if differs:
        return Suggestion("R1", "Train on the text first (CPT): the model hardly knows its kind", reason,
                          {"2": 1, "3": 1, "4": 1, "5": 1, "7": 1})
    return Suggestion("R1", "Leave CPT out: the model knows this kind of text", reason, {"1": 3, "6": 3})


def r2_plenty_of_text(facts: Facts) -> Suggestion | None:
    """A billion tokens of domain text are worth CPT where only the domain counts."""
    tokens = facts.tokens.get("domain_text") or 0
    if tokens < PLENTIFUL_TOKENS or facts.wants != "domain":
        return None
    return Suggestion("R2", "Use the text: CPT before SFT",
                      f"{hyperparameters.format_count(tokens)} tokens are plenty, and only the domain counts",
                      {"2": 1.5, "3": 1.5, "7": 1.5})


def r3_base_or_chat(facts: Facts) -> Suggestion | None:
    """For the domain alone it matters little whether SFT starts from a good base or its chat model."""
    if facts.wants != "domain":
        return None
    return Suggestion("R3", "Compare modes 1 and 6 by the domain probes before you pay for a better start",
                      "from a good base both usually end close together in the domain")


def r4_chat_forgets(facts: Facts) -> Suggestion | None:
    """A chat model that is tuned on the domain alone easily loses general ability."""
    if facts.wants == "both":
        return Suggestion("R4", "Be wary of modes 6 and 7, and watch the general probes after each stage",
                          "a chat model shown the domain alone easily forgets the rest", {"6": -1, "7": -1})
    if facts.wants == "domain":
        return Suggestion("R4", "A fall of the general probes may be ignored", "only the domain counts here")
    return None


def r5_related_tasks(facts: Facts) -> Suggestion | None:
    """General tasks first, domain tasks second, where the two are akin and only the domain counts."""
    available = facts.row_count("general_tasks") or not facts.rows
    if not (facts.related and facts.wants == "domain" and available):
        return None
    return Suggestion("R5", "Two stages of SFT: general tasks, then the domain's",
                      "your tasks are akin to general ones, so skill carries over", {"3": 1.5})


def r6_keep_both(facts: Facts) -> Suggestion | None:
    """Who wants the domain and general ability trains the base on both kinds of task side by side."""
    if facts.wants != "both":
        return None
    return Suggestion("R6", "Start from the base, mix general and domain tasks, try several general_share",
                      "what is practised all along is not forgotten, and the ratio decides who gains",
                      {"4": 3.5, "5": 3.5})


def r7_resources(facts: Facts) -> Suggestion | None:
    """Resources decide the main line: mode 2 or 5 with them, mode 6 without."""
    if facts.resources == "little":
        return Suggestion("R7", "Tune a chat model on your tasks, nothing more",
                          "resources are scarce and it already knows how to answer", {"6": 6})
    if facts.resources == "much" and facts.wants == "both":
        return Suggestion("R7", "Mix tasks into the CPT, then tune on both kinds of task",
                          "resources allow the long way, and general ability is to stay", {"5": 2})
    if facts.resources == "much" and facts.wants == "domain":
        return Suggestion("R7", "CPT on the text, then SFT on the tasks",
                          "resources allow it and only the domain counts", {"2": 2, "3": 1})
    return None


def r8_learning_rate(facts: Facts) -> Suggestion | None:
    """SFT takes about a tenth of the pre-training rate, CPT a larger part of it."""
    if not (rate := facts.pretraining_learning_rate):
        return None
    sft, cpt = (hyperparameters.full_learning_rate(kind, rate, facts) for kind in ("sft", "cpt"))
    return Suggestion("R8", f"With full, take {sft:.3g} for SFT, {cpt:.3g} for CPT; settle the rate first",
                      f"at the pre-training rate, {rate:.3g}, SFT may never converge unless data are huge")


def r9_warm_up(facts: Facts) -> Suggestion | None:
    """SFT warms up for a smaller part of its steps than pre-training; a higher rate wants a larger part."""
    if not (rate := facts.pretraining_learning_rate):
        return None
    ratio, peak = hyperparameters.WARMUP_RATIO, hyperparameters.full_learning_rate("sft", rate, facts)
    return Suggestion("R9", f"Warm up for {ratio['sft']:g} of SFT's steps, {ratio['cpt']:g} of CPT's; "
                            "more at higher rates",
                      f"SFT by full goes at {peak:.3g}, pre-training went at {rate:.3g}")


def r10_epochs(facts: Facts) -> Suggestion | None:
    """Few rows want more passes; follow the loss, and rather overfit than underfit."""
    if not (rows := facts.row_count("domain_tasks")):
        return None
    passes, count = hyperparameters.advised_epochs("sft", rows), hyperparameters.format_count(rows)
    return Suggestion("R10", f"Start with {passes:g} epochs of SFT; let the loss decide, in doubt one more",
                      f"with {count} rows too few passes leave even the form of an answer unlearnt")


def r11_system_prompts(facts: Facts) -> Suggestion | None:
    """Several types of task want a system prompt each."""
    types = facts.task_types or 0
    if types < 2 or facts.system_prompts:
        return None
    return Suggestion("R11", "Give each type of task a system prompt of its own",
                      f"{types} types without one differ in nothing but the question")


def r12_good_base(facts: Facts) -> Suggestion | None:
    """No tuning makes up for a weak base, so compare bases first."""
    if not (accuracy := facts.base_accuracy):
        return None
    scores = ", ".join(f"{value:.0%} of {role}" for role, value in accuracy.items())
    return Suggestion("R12", "Score a second base on the same probes before you tune this one",
                      f"the base decides much of the result; untuned, this one answers {scores}")


def r13_loss(facts: Facts) -> Suggestion | None:
    """The loss is the most important signal, though in SFT it often rises before it falls."""
    if (loss := facts.base_loss.get("domain_tasks")) is None:
        return None
    return Suggestion("R13", "Judge a run by its held-out loss, and do not stop at a rise in the first steps",
                      f"SFT starts here at {loss:.2f} nats per token and often climbs before it falls")


def r14_combinations(facts: Facts) -> Suggestion | None:
    """Tasks inside CPT, or good text inside SFT, are worth a try with both kinds of data."""
    if not (facts.row_count("domain_text") and facts.row_count("domain_tasks")):
        return None
    return Suggestion("R14", "Try tasks inside CPT (mode 5), or text inside SFT (a mode of your own)",
                      "you have text and tasks, and a mixture may beat a clean cut between stages")


def r15_lora(facts: Facts) -> Suggestion | None:
    """LoRA keeps more of what was known and overfits less than full."""
    little = facts.resources == "little"
    if not little and facts.wants != "both":
        return None
    return Suggestion("R15", "Take lora" if little else "Run lora beside full, compare the general probes",
                      "it keeps more of what was known and overfits less" + ", in less memory" * little)


def r16_freeze(facts: Facts) -> Suggestion | None:
    """Frozen parts cannot be overwritten, while the free ones learn the new task."""
    if facts.wants != "both":
        return None
    return Suggestion("R16", "Run freeze beside full and compare the general probes",
                      "what is frozen does not change, and the free layers learn the new distinctions")


# Votes are balanced against each other: resources (R7) outweigh the kind of text (R1), and general ability
# (R6) outweighs both unless resources are little. tests/test_advice.py has a table of what they add up to.
RULES: dict[str, Callable[[Facts], Suggestion | None]] = {f"R{number}": rule for number, rule in enumerate((
    r1_foreign_text, r2_plenty_of_text, r3_base_or_chat, r4_chat_forgets, r5_related_tasks, r6_keep_both,
    r7_resources, r8_learning_rate, r9_warm_up, r10_epochs, r11_system_prompts, r12_good_base, r13_loss,
    r14_combinations, r15_lora, r16_freeze), 1)}


def apply_rules(facts: Facts) -> list[Suggestion]:
    """What the rules suggest, in their order; silent rules are left out."""
    return [suggestion for rule in RULES.values() if (suggestion := rule(facts))]


def suggest_mode(facts: Facts) -> tuple[str, list[Suggestion]]:
    """The mode with the highest sum of votes among those that can run, and the rules that voted on it.

    A mode can run if its roles have rows and it has a model to start from: `chat_model` False rules out chat.
    Ties go to the recipe's own default, then to the lower number. Raises BadInput where no mode has its data.
    """
    starts = ("base",) if facts.chat_model is False else ("base", "chat")
    can_run = [number for number, mode in MODES.items()
               if mode.start in starts and not missing_roles(mode, facts)]
    if not can_run:
        raise BadInput("no mode can run: each ends with SFT on domain_tasks, which has no rows; "
                       "give questions and answers of your field", field="domain_tasks")
    suggestions = apply_rules(facts)
    votes = {mode: sum(suggestion.votes.get(mode, 0) for suggestion in suggestions) for mode in can_run}
    best = max(votes, key=lambda mode: (votes[mode], mode == Recipe().mode))
    return best, [suggestion for suggestion in suggestions if best in suggestion.votes]


@dataclass(frozen=True)
class Advice:
    """What the rules say for a recipe and what is known: a mode, values, warnings."""

    recipe: Recipe
    facts: Facts
    mode: str | None  # the suggested one's number; None where no mode has its data
    obstacle: str  # why no mode can be suggested
    leading: tuple[Suggestion, ...]  # the rules that spoke for or against the suggested mode
    others: tuple[Suggestion, ...]
    values: dict[str, hyperparameters.Advised]  # for the fields that are not set
    warnings: tuple[str, ...]

    def to_dict(self) -> dict:
        """The advice, ready for JSON."""
        return {"suggested_mode": self.mode, "obstacle": self.obstacle, "facts": self.facts.to_dict(),
                "rules": [{"rule": one.rule, "advice": one.advice, "reason": one.reason,
                           "leads": one in self.leading} for one in (*self.leading, *self.others)],
                "values": {name: asdict(advised) for name, advised in self.values.items()},
                "warnings": list(self.warnings)}


def advise(recipe: Recipe, facts: Facts) -> Advice:
    """The suggested mode and the rules behind it, the other rules, and values and warnings for the recipe."""
    if recipe.pretraining_learning_rate:
        facts = facts.add("stated", pretraining_learning_rate=recipe.pretraining_learning_rate)
    mode, obstacle, leading = None, "", []
    try:
        mode, leading = suggest_mode(facts)
    except BadInput as error:
        obstacle = str(error)
    resolved, values = hyperparameters.resolve_recipe(recipe, facts)
    unused = OPTIONS.difference(METHOD_OPTIONS[resolved.method], METHOD_OPTIONS[resolved.cpt_method])
    return Advice(recipe, facts, mode, obstacle, tuple(leading),
                  tuple(one for one in apply_rules(facts) if one not in leading),
                  {name: advised for name, advised in values.items() if name not in unused},
                  tuple(recipe_warnings(recipe, facts)))
