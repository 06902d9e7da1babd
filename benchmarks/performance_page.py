"""What `performance.py` measured, as the tables of docs/performance.md."""

import statistics
from pathlib import Path

# of what begins so: the trainings' ratios to the raw loop, TRL (its better) and LLaMA-Factory, or seconds
GOALS = {"pocket": "≤ 1.10, 0.60, 0.95", "135M": "≤ 1.05, 0.60", "import": "≤ 0.2",
         "sftbench --help": "≤ 0.5", "sftbench check": "≤ 4", "1,000 runs": "≤ 1"}
PEERS = ("loop", "trl", "trl-packed", "llama-factory")
PARTS = {"scores between stages": "≤ 10% with those while it trains", "scores while it trains": "",
         "forecast": "≤ 5%", "picture and events": "≤ 2%"}


def page_text(measured: dict) -> str:
    """All tables."""
    lines = [*machines(measured), "", *table(
        "training", "sftbench, ms a token", "÷ raw loop", "÷ TRL", "÷ TRL, packed", "÷ LLaMA-Factory", "goal",
        "padding", "GB, sftbench and TRL", "others, cores")]
    lines += [training_row(name, one) for name, one in measured.items() if "ratio" in one]
    lines += ["", *table("command", "seconds", "Python alone", "goal", "others, cores")]
    lines += [row(as_code(name), three(one["seconds"]), three(one.get("python")), goal(name), one["others"])
              for name, one in measured.items() if "seconds" in one]
    for name, one in measured.items():
        if parts := one.get("shares"):
            lines += ["", f"Of {name} (135M, LoRA, {parts['steps']} steps, {parts['probe_rows']} held-out "
                      f"rows, {parts['seconds']:.0f} s; the start's scores, {parts['start']:.0f} s, are "
                      "stored for later runs and not counted):", "", *table("part", "share", "goal")]
            lines += [row(part, f"{parts[part] / parts['seconds']:.1%}", most)
                      for part, most in PARTS.items()]
    return "\n".join(lines) + "\n"


def training_row(name: str, one: dict) -> str:
    """A training beside the others'."""
    peaks = (gigabytes(one, who) for who in ("sftbench", "trl"))
    return row(name, three(one["ms_per_token"]["sftbench"]), *(three(one["ratio"].get(who)) for who in PEERS),
               goal(name), f"{one['padding']:.1%}", ", ".join(peaks), one["others"])


def write_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Put a text between the marks of a page in place of what is there."""
    whole = page.read_text(encoding="utf-8")
    before, after = whole.split(marks[0])[0], whole.split(marks[1])[1]
    page.write_text(before + marks[0] + text + marks[1] + after, encoding="utf-8")


def table(*heads: str) -> list[str]:
    """The first two lines of a table."""
    return [row(*heads), "|" + "---|" * len(heads)]


def row(*cells) -> str:
    """One line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def machines(measured: dict) -> list[str]:
    """What was measured where; one sentence if all was on one machine."""
    where = {}
    for name, one in measured.items():
        where.setdefault(one["machine"], []).append(name)
    of = {place: f" ({'; '.join(names)})" if len(where) > 1 else "" for place, names in where.items()}
    return [f"{place}{names}. Median, least and most of the pairs." for place, names in of.items()]


def gigabytes(one: dict, who: str) -> str:
    """The median of the peak, or a dash."""
    return f"{one['gigabytes'][who][0]:.2f}" if who in one["gigabytes"] else "–"


def goal(name: str) -> str:
    """What is to be reached, or a dash."""
    return next((text for start, text in GOALS.items() if name.startswith(start)), "–")


def as_code(name: str) -> str:
    """A command as code, and what comes behind a comma as words."""
    command, comma, words = name.partition(", ")
    return f"`{command}`{comma}{words}"


def spread(values: list[float]) -> list[float]:
    """Median, least and most."""
    return [float(f"{value:.3g}") for value in (statistics.median(values), min(values), max(values))]


def three(values: list[float] | None) -> str:
    """Median (least–most), or a dash."""
    return f"{values[0]:g} ({values[1]:g}–{values[2]:g})" if values else "–"
