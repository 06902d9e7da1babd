"""Advice: the rules R1 to R16 as code, the mode they add up to, and a value with its reason for every `None`.

All work on `known`, a plain dict of what was measured or said about data, model, device and aims; any key may
be absent or None, and a rule that lacks what it needs stays silent. Losses are in nats per token.
"""

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from . import modes
from .errors import BadInput
from .recipe import Recipe

ASSUMED_RATE = 1e-4  # pre-training peak rate where no card tells it; usual for models of some billions
FRACTION = {"sft": 0.1, "cpt": 1 / 3}  # of the pre-training rate; CPT goes on with pre-training, on new text
METHOD_FACTOR = {"full": 1, "freeze": 1, "lora": 5, "qlora": 5, "ptuning_v2": 100}  # times what full takes
LORA_CPT_MOST = 5  # CPT by LoRA never takes more than so many times full's rate, not even with large batches
RATE_MOST = 0.1  # no advised rate exceeds this; beyond it even a prefix jumps about
BATCH = {"sft": 4, "cpt": 4}  # blocks a step for which the rates hold; small ones learn facts in fewer tokens
BATCH_SCALE = (0.5, 2.0)  # how far another batch may move the rate
WARMUP = {"sft": 0.005, "cpt": 0.01}  # at full's rate; CPT as pre-training has it, SFT less
WARMUP_MOST = 0.1
EPOCHS_UNKNOWN = {"sft": 3, "cpt": 1}  # where rows or tokens were not counted
EPOCHS_MOST = {"sft": 10, "cpt": 8}
# So many rows (tokens) do with so many passes, and want so many more for each factor of ten they lack.
ENOUGH = {"sft": (1e5, 2, 2), "cpt": (1e9, 1, 1)}
PLENTY = 1e9  # tokens of domain text that are worth CPT by themselves
GAP = 0.5  # nats per token by which text differs "much": perplexity is then e^0.5 = 1.65 times as high
LENGTHS = (128, 1024)  # shortest and longest advised block, in tokens
LARGE_MODEL = 1e9  # parameters from which activations are worth recomputing
ANSWER_MARGIN, ANSWER_MOST, ANSWER_UNKNOWN = 4, 256, 64  # tokens
FAR_OFF = 5  # a rate so many times above or below the advised one is warned of
WIDTH = 100  # columns of `explain`


@dataclass(frozen=True)
class Suggestion:
    """What one rule says and why; `sets` holds recipe fields (rates: those for full) or `mode_votes`."""

    rule: str
    says: str
    because: str
    sets: dict = field(default_factory=dict)


def _rows(known: dict, role: str) -> int | None:
    return (known.get("rows") or {}).get(role)


def _count(number: float) -> str:
    """As a reader likes it: 2.5, 1,200, 3.5 million, 1 billion."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}" if number >= 10 else f"{number:.3g}"


def _votes(**votes: float) -> dict:
    """`_votes(m2=1)` is one vote for mode 2; a negative number speaks against it."""
    return {"mode_votes": {name[1:]: number for name, number in votes.items()}}


def r1_foreign_text(known: dict) -> Suggestion | None:
    """Text unlike what the model has read calls for CPT; the base's loss tells, or else the user."""
    loss = known.get("base_loss") or {}
    gap = (loss.get("domain_text") or math.nan) - (loss.get("general_text") or math.nan)
    differs = gap > GAP if math.isfinite(gap) else known.get("differs")
    if differs is None:
        return None
    because = "you say so of your text"
    if math.isfinite(gap):
        side = "above" if differs else "not above"
        because = (f"its loss on your text minus that on everyday text is {gap:.2f} nats per token, {side} "
                   f"{GAP:g} (perplexity × {math.exp(GAP):.2f})")
    if differs:
        return Suggestion("R1", "Train on the text first (CPT): the model hardly knows its kind", because,
                          _votes(m2=1, m3=1, m4=1, m5=1, m7=1))
    return Suggestion("R1", "Leave CPT out: the model knows this kind of text", because, _votes(m1=3, m6=3))


def r2_plenty_of_text(known: dict) -> Suggestion | None:
    """A billion tokens of domain text are worth CPT where only the domain counts."""
    tokens = (known.get("tokens") or {}).get("domain_text") or 0
    if tokens < PLENTY or known.get("wants") != "domain":
        return None
    return Suggestion("R2", "Use the text: CPT before SFT", f"{_count(tokens)} tokens are plenty, and only "
                      "the domain counts", _votes(m2=1.5, m3=1.5, m7=1.5))


def r3_base_or_chat(known: dict) -> Suggestion | None:
    """For the domain alone it matters little whether SFT starts from a good base or its chat model."""
    if known.get("wants") != "domain":
        return None
    return Suggestion("R3", "Compare modes 1 and 6 by the domain probes before you pay for a better start",
                      "from a good base both usually end close together in the domain")


def r4_chat_forgets(known: dict) -> Suggestion | None:
    """A chat model that is tuned on the domain alone easily loses general ability."""
    if known.get("wants") == "both":
        return Suggestion("R4", "Be wary of modes 6 and 7, and watch the general probes after each stage",
                          "a chat model shown the domain alone easily forgets the rest", _votes(m6=-1, m7=-1))
    if known.get("wants") == "domain":
        return Suggestion("R4", "A fall of the general probes may be ignored", "only the domain counts here")
    return None


def r5_related_tasks(known: dict) -> Suggestion | None:
    """General tasks first, domain tasks second, where the two are akin and only the domain counts."""
    at_hand = _rows(known, "general_tasks") or not known.get("rows")
    if not (known.get("related") and known.get("wants") == "domain" and at_hand):
        return None
    return Suggestion("R5", "Two stages of SFT: general tasks, then the domain's",
                      "your tasks are akin to general ones, so skill carries over", _votes(m3=1.5))


def r6_keep_both(known: dict) -> Suggestion | None:
    """Who wants the domain and general ability trains the base on both kinds of task side by side."""
    if known.get("wants") != "both":
        return None
    return Suggestion("R6", "Start from the base, mix general and domain tasks, try several general_share",
                      "what is practised all along is not forgotten, and the ratio decides who gains",
                      _votes(m4=3.5, m5=3.5))


def r7_resources(known: dict) -> Suggestion | None:
    """Resources decide the main line: mode 2 or 5 with them, mode 6 without."""
    if known.get("resources") == "little":
        return Suggestion("R7", "Tune a chat model on your tasks, nothing more",
                          "resources are scarce and it already knows how to answer", _votes(m6=6))
    if known.get("resources") != "much" or known.get("wants") not in ("domain", "both"):
        return None
    if known["wants"] == "both":
        return Suggestion("R7", "Mix tasks into the CPT, then tune on both kinds of task",
                          "resources allow the long way, and general ability is to stay", _votes(m5=2))
    return Suggestion("R7", "CPT on the text, then SFT on the tasks",
                      "resources allow it and only the domain counts", _votes(m2=2, m3=1))


def r8_learning_rate(known: dict) -> Suggestion | None:
    """SFT takes about a tenth of the pre-training rate, CPT a larger part of it."""
    rate = known.get("pretraining_learning_rate")
    if not rate:
        return None
    sft, cpt = _full_rate("sft", rate), _full_rate("cpt", rate)
    return Suggestion("R8", f"With full, take {sft:.3g} for SFT, {cpt:.3g} for CPT; settle the rate first",
                      f"at the pre-training rate, {rate:.3g}, SFT may never converge unless data are huge",
                      {"learning_rate": sft, "cpt_learning_rate": cpt})


def r9_warm_up(known: dict) -> Suggestion | None:
    """SFT warms up for a smaller part of its steps than pre-training; a higher rate wants a larger part."""
    rate = known.get("pretraining_learning_rate")
    if not rate:
        return None
    sft, cpt = WARMUP["sft"], WARMUP["cpt"]
    return Suggestion("R9", f"Warm up for {sft:g} of SFT's steps, {cpt:g} of CPT's; more at higher rates",
                      f"SFT by full goes at {_full_rate('sft', rate):.3g}, pre-training went at {rate:.3g}",
                      {"warmup_ratio": sft, "cpt_warmup_ratio": cpt})


def r10_epochs(known: dict) -> Suggestion | None:
    """Few rows want more passes; follow the loss, and rather overfit than underfit."""
    rows = _rows(known, "domain_tasks")
    if not rows:
        return None
    epochs = _epochs("sft", rows)
    return Suggestion("R10", f"Start with {epochs:g} epochs of SFT; let the loss decide, in doubt one more",
                      f"with {_count(rows)} rows too few passes leave even the form of an answer unlearnt",
                      {"num_train_epochs": epochs})


def r11_system_prompts(known: dict) -> Suggestion | None:
    """Several types of task want a system prompt each."""
    types = known.get("task_types") or 0
    if types < 2 or known.get("system_prompts"):
        return None
    return Suggestion("R11", "Give each type of task a system prompt of its own",
                      f"{types} types without one must be told apart by the question alone")


def r12_good_base(known: dict) -> Suggestion | None:
    """No tuning makes up for a weak base, so compare bases first."""
    accuracy = known.get("base_accuracy") or {}
    if not accuracy:
        return None
    scores = ", ".join(f"{value:.0%} of {role}" for role, value in accuracy.items())
    return Suggestion("R12", "Score a second base on the same probes before you tune this one",
                      f"the base decides much of the result; untuned, this one answers {scores}")


def r13_loss(known: dict) -> Suggestion | None:
    """The loss is the signal to go by, though in SFT it often rises before it falls."""
    loss = (known.get("base_loss") or {}).get("domain_tasks")
    if loss is None:
        return None
    return Suggestion("R13", "Judge a run by its held-out loss, and do not stop at a rise in the first steps",
                      f"SFT starts here at {loss:.2f} nats per token and often climbs before it falls")


def r14_combinations(known: dict) -> Suggestion | None:
    """Tasks inside CPT, or good text inside SFT, are worth a try where both kinds of data are at hand."""
    if not (_rows(known, "domain_text") and _rows(known, "domain_tasks")):
        return None
    return Suggestion("R14", "Try tasks inside CPT (mode 5), or text inside SFT (a mode of your own)",
                      "you have text and tasks, and a mixture may beat a clean cut between stages")


def r15_lora(known: dict) -> Suggestion | None:
    """LoRA keeps more of what was known and overfits less than full."""
    little = known.get("resources") == "little"
    if not little and known.get("wants") != "both":
        return None
    return Suggestion("R15", "Take lora" if little else "Run lora beside full, compare the general probes",
                      "it keeps more of what was known and overfits less" + ", in less memory" * little,
                      {"method": "lora"} if little else {})


def r16_freeze(known: dict) -> Suggestion | None:
    """Frozen parts cannot be overwritten, while the free ones learn the new task."""
    if known.get("wants") != "both":
        return None
    return Suggestion("R16", "Run freeze beside full and compare the general probes",
                      "what is frozen stays as it was, and the free layers draw the new distinctions")


RULES: dict[str, Callable[[dict], Suggestion | None]] = {f"R{number}": rule for number, rule in enumerate((
    r1_foreign_text, r2_plenty_of_text, r3_base_or_chat, r4_chat_forgets, r5_related_tasks, r6_keep_both,
    r7_resources, r8_learning_rate, r9_warm_up, r10_epochs, r11_system_prompts, r12_good_base, r13_loss,
    r14_combinations, r15_lora, r16_freeze), 1)}


def suggest(known: dict) -> list[Suggestion]:
    """What the rules say, in their order; silent rules are left out."""
    return [said for rule in RULES.values() if (said := rule(known))]


def suggest_mode(known: dict) -> tuple[str, list[Suggestion]]:
    """The mode with most votes among those whose roles have rows, and the rules that spoke for or against it.

    Ties go to the recipe's own default, then to the lower number. Raises BadInput where no mode has its data.
    """
    scores = {mode: 0.0 for mode in modes.MODES if not _lacking(modes.MODES[mode], known)}
    if not scores:
        raise BadInput("no mode can run: each ends with SFT on domain_tasks, which has no rows; "
                       "give questions and answers of your field")
    voting = [said for said in suggest(known) if "mode_votes" in said.sets]
    for said in voting:
        for mode, vote in said.sets["mode_votes"].items():
            if mode in scores:
                scores[mode] += vote
    best = max(scores, key=lambda mode: (scores[mode], mode == Recipe().mode))
    return best, [said for said in voting if best in said.sets["mode_votes"]]


def _lacking(mode: dict, known: dict) -> list[str]:
    """The roles of the mode that have no rows; none as long as nothing was counted."""
    rows = known.get("rows")
    return [role for role in modes.roles(mode) if not rows.get(role)] if rows else []


def _full_rate(kind: str, pretraining_rate: float) -> float:
    return float(f"{min(FRACTION[kind] * pretraining_rate, RATE_MOST):.3g}")


def _epochs(kind: str, amount: float) -> float:
    """Passes over so many rows (SFT) or tokens (CPT): more for each factor of ten that they fall short."""
    enough, least, more = ENOUGH[kind]
    passes = round(least + more * math.log10(enough / max(amount, 1)))
    return float(min(max(passes, least), EPOCHS_MOST[kind]))


def _of(recipe: Recipe, kind: str, name: str) -> Any:
    """The recipe's field for stages of this kind: CPT fields bear a prefix."""
    return getattr(recipe, f"cpt_{name}" if kind == "cpt" else name)


def _advise_cpt_method(recipe: Recipe, known: dict) -> tuple:
    return recipe.method, "CPT and SFT use one method unless you say otherwise"


def _advise_pretraining_rate(recipe: Recipe, known: dict) -> tuple:
    if rate := known.get("pretraining_learning_rate"):
        return rate, "the model's card says so"
    return ASSUMED_RATE, "it is assumed: neither card nor user names the pre-training rate"


def _advise_batch(recipe: Recipe, known: dict, kind: str) -> tuple:
    return BATCH[kind], "small batches learn facts from fewer tokens"


def _advise_rate(recipe: Recipe, known: dict, kind: str) -> tuple:
    method, pretraining_rate = _of(recipe, kind, "method"), recipe.pretraining_learning_rate
    full, factor = FRACTION[kind] * pretraining_rate, METHOD_FACTOR[method]
    why = f"{kind.upper()} takes {FRACTION[kind]:.2g} × the pre-training rate {pretraining_rate:.3g}"
    if kind == "cpt":
        why += ", more than SFT, as it goes on with pre-training"
    if factor != 1:
        why += f", and {method} {factor:g} × what full takes"
    blocks = _of(recipe, kind, "per_device_train_batch_size") * recipe.gradient_accumulation_steps
    scale = min(max(math.sqrt(blocks / BATCH[kind]), BATCH_SCALE[0]), BATCH_SCALE[1])
    if scale != 1:
        why += f", × {scale:.2g} for {blocks} blocks a step instead of {BATCH[kind]}"
    most = RATE_MOST
    if kind == "cpt" and method in ("lora", "qlora"):
        most = min(most, LORA_CPT_MOST * full)
    if full * factor * scale > most * 1.0001:  # not for a rounding error
        why += f", capped at {most:.3g}"
    return float(f"{min(full * factor * scale, most):.3g}"), f"{why} (R8)"


def _advise_warmup(recipe: Recipe, known: dict, kind: str) -> tuple:
    full, rate = _full_rate(kind, recipe.pretraining_learning_rate), _of(recipe, kind, "learning_rate")
    ratio = min(WARMUP[kind] * math.sqrt(rate / full), WARMUP_MOST)
    side = "as" if kind == "cpt" else "less than"
    why = f"{kind.upper()} warms up for {WARMUP[kind]:g} of its steps, {side} pre-training does"
    if rate != full:
        why += f"; {_count(rate / full)} × full's rate moves it by the square root, up to {WARMUP_MOST:g}"
    return float(f"{ratio:.3g}"), f"{why} (R9)"


def _advise_epochs(recipe: Recipe, known: dict, kind: str) -> tuple:
    unit, role = ("rows", "domain_tasks") if kind == "sft" else ("tokens", "domain_text")
    enough, least, _ = ENOUGH[kind]
    amount = (known.get(unit) or {}).get(role)
    if not amount:
        return float(EPOCHS_UNKNOWN[kind]), f"the {unit} of {role} are not counted yet (R10)"
    why = f"{role} has {_count(amount)} {unit}; fewer want more passes ({least} do from {_count(enough)} on)"
    return _epochs(kind, amount), f"{why} (R10)"


def _advise_max_length(recipe: Recipe, known: dict) -> tuple:
    longest = known.get("row_tokens")
    length, why = LENGTHS[1], "the length of your rows is not known"
    if longest:
        power = 1 << (math.ceil(longest) - 1).bit_length()
        length = min(max(power, LENGTHS[0]), LENGTHS[1])
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
    if known.get("device") != "cuda":
        return False, "on a CPU it saved no time at the sizes measured"
    has = bool(known.get("bf16"))
    return has, "the GPU computes in bfloat16" if has else "the GPU is not known to have bfloat16"


def _advise_checkpointing(recipe: Recipe, known: dict) -> tuple:
    if "ptuning_v2" in (recipe.method, recipe.cpt_method):
        return False, "PEFT refuses it for prefixes"
    large = (known.get("parameters") or 0) >= LARGE_MODEL
    return large, (f"{_count(LARGE_MODEL)} parameters and more leave little memory free" if large else
                   f"below {_count(LARGE_MODEL)} parameters the memory saved is not worth the time")


def _advise_compute_dtype(recipe: Recipe, known: dict) -> tuple:
    if known.get("device") != "cuda":
        return "float32", "CPUs compute fastest and safest in it"
    return ("bfloat16" if known.get("bf16") else "float16"), _advise_bf16(recipe, known)[1]


def _advise_new_tokens(recipe: Recipe, known: dict) -> tuple:
    answer = known.get("answer_tokens")
    if not answer:
        return ANSWER_UNKNOWN, "the length of your answers is not known"
    return min(answer + ANSWER_MARGIN, ANSWER_MOST), f"the longest answer of a probe has {answer} tokens"


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
    "bnb_4bit_compute_dtype": _advise_compute_dtype,
    "max_new_tokens": _advise_new_tokens,
}


def resolve(recipe: Recipe, known: dict) -> tuple[Recipe, dict[str, str]]:
    """The recipe with every advised `None` filled, and `{field: "value because reason"}`; set fields stay."""
    reasons = {}
    for name, advise in ADVISED.items():
        if getattr(recipe, name) is None:
            value, why = advise(recipe, known)
            recipe = replace(recipe, **{name: value})
            reasons[name] = f"{_shown(value)} because {why}"
    return recipe, reasons


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def warnings(recipe: Recipe, known: dict) -> list[str]:
    """Where the user's values depart far from the advice; raises BadInput for an unknown mode."""
    full, _ = resolve(recipe, known)
    return [*_mode_warnings(recipe, known), *_number_warnings(full, known), *_fit_warnings(full, known)]


def _mode_warnings(recipe: Recipe, known: dict) -> list[str]:
    mode, found = modes.load(recipe.mode), []
    if lacking := _lacking(mode, known):
        found.append(f"mode {recipe.mode} lacks rows of {' and '.join(lacking)}: give data or change mode")
    last = modes.stages(mode, recipe.general_share, recipe.task_share)[-1]["shares"]
    if known.get("wants") == "both" and "general_tasks" not in last:
        cause = f"the last stage of mode {recipe.mode} has no general tasks"
        if recipe.general_share == 0:
            cause = "general_share is 0"
        found.append(f"{cause} although general ability counts too: expect forgetting, or mix some in, as "
                     "modes 4 and 5 do (R4, R6)")
    return found


def _number_warnings(full: Recipe, known: dict) -> list[str]:
    """Rates, warm-up and epochs of a resolved recipe, far from what would be advised."""
    found = []
    for prefix in ("cpt_", ""):
        name = f"{prefix}learning_rate"
        rate, (advised, _) = getattr(full, name), ADVISED[name](full, known)
        off = max(rate / advised, advised / rate)
        if off >= FAR_OFF * 0.9999:  # not for a rounding error
            side, method = "above" if rate > advised else "below", getattr(full, f"{prefix}method")
            found.append(f"{name} {rate:.3g} is {_count(off)} times {side} the {advised:.3g} "
                         f"advised for {method} (R8)")
        name = f"{prefix}warmup_ratio"
        if (ratio := getattr(full, name)) > WARMUP_MOST:
            found.append(f"{name} {ratio:g} is beyond {WARMUP_MOST:g}, so much of the run is spent "
                         f"below its rate; advised is {ADVISED[name](full, known)[0]:g} (R9)")
        name = f"{prefix}num_train_epochs"
        epochs, (advised, _) = getattr(full, name), ADVISED[name](full, known)
        if epochs < advised / 2:
            found.append(f"{name} {epochs:g} is less than half of the {advised:g} advised; rather overfit "
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


def explain(recipe: Recipe, known: dict) -> str:
    """The advice as plain text of at most 100 columns: mode, rules, values with reasons, warnings."""
    if recipe.pretraining_learning_rate:
        known = {**known, "pretraining_learning_rate": recipe.pretraining_learning_rate}
    lines, led = _mode_lines(recipe, known)
    others = [said for said in suggest(known) if said not in led]
    lines += _section("Worth knowing", [_rule_lines(said) for said in others])
    reasons = resolve(recipe, known)[1]
    rows = [(name, *text.split(" because ", 1)) for name, text in reasons.items()]
    left, middle = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    table = [_wrapped(f"  {name:<{left}}  {value:<{middle}}  ", why) for name, value, why in rows]
    lines += _section("Advised values (a value that you set stays)", table)
    lines += _section("Warnings", [_wrapped("  ! ", text) for text in warnings(recipe, known)])
    return "\n".join(lines)


def _mode_lines(recipe: Recipe, known: dict) -> tuple[list[str], list[Suggestion]]:
    """The suggested mode as text, with the rules that led to it."""
    try:
        best, led = suggest_mode(known)
    except BadInput as error:
        return _wrapped("Suggested mode: ", str(error)), []
    mode = modes.MODES[best]
    lines = [f"Suggested mode: {best} ({mode['name']})", f"  {mode['sentence']}"]
    if modes.load(recipe.mode) is not mode:
        lines += _wrapped("  ", f"The recipe has mode {recipe.mode}.")
    if not led:
        lines += _wrapped("  ", "No rule speaks for or against it yet: say what you want and what you have.")
    return lines + [line for said in led for line in _rule_lines(said)], led


def _rule_lines(said: Suggestion) -> list[str]:
    return _wrapped(f"  {said.rule:<5}", f"{said.says}, because {said.because}.")


def _section(title: str, entries: list[list[str]]) -> list[str]:
    return ["", title, *(line for entry in entries for line in entry)] if entries else []


def _wrapped(lead: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead),
                         break_on_hyphens=False)
