"""The ledger: what a run gained in the domain and lost elsewhere, stage by stage, as one table of text."""

from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from ..runs.events import format_duration
from ..runs.folder import read_json, read_result

COLUMNS = ("domain_tasks", "domain_text", "general_tasks", "general_text", "yardstick")
MEASURES = ("loss", "accuracy", "f1")
FEW_PROBE_ROWS = 20  # rows of a probe below which chance outweighs most of what training changes
SMALL_RISE = 0.05  # nats per token: a smaller rise of the loss is hardly to be seen in what a model writes


def format_ledger(run: Path | str) -> str:
    """The table of a finished run, read from its folder: probes by stage, the change, and what it cost.

    Accuracy and F1 are parts of 1, loss is in nats per token. Raises BadInput where the run is not complete.
    """
    result = read_result(run)
    recipe = result["recipe"]
    start = result["start"]["model"]
    stored = read_json(run, "recipe.json") if (Path(run) / "recipe.json").exists() else {}
    sizes = {role: rows for role in COLUMNS
             if (rows := stored.get("data", {}).get(role, {}).get("probe_rows"))}
    told = ", ".join(f"{role.replace('_', ' ')} {rows:,}" for role, rows in sizes.items())
    head = f"Mode {recipe['mode']} from {start}, " + (
        f"rows scored: {told}" if told else f"at most {recipe['probe_rows']} rows a probe")
    few = ", ".join(
        f"{role.replace('_', ' ')} ({rows})" for role, rows in sizes.items() if rows < FEW_PROBE_ROWS
    )
    warning = f"\nWarning: too few probe rows to tell a change from chance: {few}." * bool(few)
    return f"{head}\n\n{format_result_ledger(result)}{warning}"


def format_result_ledger(result: dict) -> str:
    """The same from a result already read."""
    states = [(f"start ({result['start']['name']})", result["start"]["probes"])]
    states += [(stage["name"], stage["probes"]) for stage in result["stages"]]
    return "\n".join([*_probe_table(states), "", *_cost_lines(result["stages"]), *_forecast_lines(result), "",
                      *_summary_lines(states[0][1], states[-1][1])])


def format_partial_ledger(events: list[dict]) -> str:
    """The table of a run that goes on, from its events: a line for each state that was scored; else empty."""
    plan = next((event["plan"] for event in events if "plan" in event), {})
    states = {}
    for event in events:
        probes = {role: {measure: event[name] for measure in MEASURES
                         if event.get(name := f"eval_{role}_{measure}") is not None} for role in COLUMNS}
        # in the middle of a stage, and at its begin, only a part of each probe is scored
        whole = "steps" not in event and event["step"] == {"start": 0, **plan}.get(event["stage"])
        if whole and any(probes.values()):
            states[event["stage"]] = {role: measures for role, measures in probes.items() if measures}
    return "\n".join(_probe_table(list(states.items()))) if states else ""


def _probe_table(states: list[tuple[str, dict]]) -> list[str]:
    """The table of probes by state, with the change from the first to the last where there are two."""
    first, last = states[0][1], states[-1][1]
    columns = [(role, measure) for role in COLUMNS for measure in MEASURES if measure in last.get(role, {})]
    rows = [(name, [str(_rounded(probes[role][measure])) for role, measure in columns])
            for name, probes in states]
    if len(rows) > 1:
        rows.append(("change", [f"{_rounded(last[role][measure], first[role][measure]):+}"
                                for role, measure in columns]))
    width = max(len(name) for name, _ in rows)
    lines = [*_headings(columns, width), *(_line(name.ljust(width), cells, columns) for name, cells in rows)]
    rule = "-" * len(lines[-1])
    if len(rows) == 1:
        return [*lines[:2], rule, *lines[2:]]
    return [*lines[:2], rule, *lines[2:-1], rule, lines[-1]]


def _rounded(value: float, less: float = 0) -> Decimal:
    """What a probe's figure is (above another) with two decimals, half up: table and sentences agree."""
    return (Decimal(str(value)) - Decimal(str(less))).quantize(Decimal("0.01"), ROUND_HALF_UP) + 0


def _percent(value: float) -> str:
    return f"{int(_rounded(value) * 100)}%"


CELL, GAP = 10, 4  # characters of a figure's column, and between two probes


def _headings(columns: list[tuple[str, str]], first: int) -> list[str]:
    """Two lines: each probe's name over its columns, and the measures."""
    over = "probe after".ljust(first)
    for role in dict.fromkeys(role for role, _ in columns):
        measures, title = [measure for other, measure in columns if other == role], role.replace("_", " ")
        wide = GAP + CELL * len(measures)
        # over the first of several columns; one column is too narrow for that
        over += (" " * (GAP + CELL - len(measures[0])) + title).ljust(wide) if len(measures) > 1 \
            else title.rjust(wide)
    return [over.rstrip(), _line(" " * first, [measure for _, measure in columns], columns)]


def _line(text: str, cells: list[str], columns: list[tuple[str, str]]) -> str:
    for index, cell in enumerate(cells):
        new = index == 0 or columns[index - 1][0] != columns[index][0]
        text += " " * (GAP * new) + cell.rjust(CELL)
    return text


def _cost_lines(stages: list[dict]) -> list[str]:
    """One line a stage: method, what trained, how long."""
    lines = []
    for stage in stages:
        part = stage["trainable_parameters"] / stage["parameters"]
        lines.append(
            f"{stage['name']}: {stage['method']}, "
            f"{stage['trainable_parameters']:,} parameters trained "
            f"({part:.1%} of {stage['parameters']:,}), "
            f"{stage['steps']:,} steps, {stage['tokens']:,} tokens, "
            f"{format_duration(stage['seconds'])}{', taken from the store' if stage['reused'] else ''}"
        )
    return lines


def _summary_lines(first: dict, last: dict) -> list[str]:
    """The table in words: the domain's gain, and what was forgotten."""
    lines = []
    for role, words in (("domain_tasks", "In the domain"), ("general_tasks", "In general")):
        if "accuracy" in last.get(role, {}):
            lines.append(f"{words}: {_percent(first[role]['accuracy'])} of the probe's questions answered "
                         f"exactly as wanted before, {_percent(last[role]['accuracy'])} after.")
    if "loss" in last.get("general_text", {}):
        before, after = (side["general_text"]["loss"] for side in (first, last))
        rise = _rounded(after, before)
        much = "little was forgotten" if after - before < SMALL_RISE else "so much was forgotten"
        lines.append(f"Loss on general text {_rounded(before)} -> {_rounded(after)} nats per token; it "
                     + (f"rose by {rise}: {much}." if rise > 0 else "did not rise."))
    if "yardstick" in last:
        english, chinese = (" -> ".join(_percent(side["yardstick"][f"accuracy_{language}"])
                                        for side in (first, last)) for language in ("en", "zh"))
        lines.append(f"Yardstick (built-in general probe), questions right: English {english}, "
                     f"Chinese {chinese} (chance: 25%).")
    return lines


def _forecast_lines(result: dict) -> list[str]:
    """The forecast beside the truth, for stages that were trained in this run."""
    lines = []
    for stage in result["stages"]:
        told = result.get("forecast", {}).get("stages", {}).get(stage["name"], {})
        if stage["reused"] or not told.get("peak_memory_bytes"):
            continue
        time = "" if told["seconds"] is None else (
            f"{format_duration(told['seconds'])}, took {format_duration(stage['seconds'])}; ")
        lines.append(
            f"{stage['name']}, forecast: {time}{format_gigabytes(told['peak_memory_bytes'])} of memory, "
            f"held {format_gigabytes(stage['peak_memory_bytes'])}"
        )
    return lines


REMEDIES = {"fits": "", "tight": " Another program or a longer row may be too much.",
            "does not fit": " Take a smaller batch with more accumulation, a shorter max_length, "
                            "gradient_checkpointing, or lora or qlora."}


def format_forecast(found: dict) -> str:
    """A forecast (`sftbench.expect`) as text: for each stage time and memory by part, and whether it fits."""
    lines = []
    for name, stage in found["stages"].items():
        time = ("" if stage["seconds"] is None else ", in the store already" if stage["seconds"] == 0
                else f", {format_duration(stage['seconds'])}")
        lines.append(f"{name}: {found['steps'][name]:,} steps{time}")
        if stage["memory"]:
            parts = " + ".join(f"{format_gigabytes(size)} {part}" for part, size in stage["memory"].items())
            lines.append(f"    {format_gigabytes(stage['peak_memory_bytes'])} of memory = {parts}")
    if found["seconds"] is None:
        why = found.get("untimed")
        lines.append(f"Time: not measured, since {why}." if why else "Time: not measured.")
    else:
        lines.append(
            f"Time: {format_duration(found['seconds'])}, of it {format_duration(found['probe_seconds'])} "
            "whenever the probes are scored."
        )
    if found["fits"]:
        lines.append(f"Memory: {found['fits']}; {format_gigabytes(found['peak_memory_bytes'])} at the most, "
                     f"{format_gigabytes(found['room_bytes'])} are free for it.{REMEDIES[found['fits']]}")
    return "\n".join(lines)


def format_gigabytes(size: int) -> str:
    """Bytes as a person reads them: `1.25 GB`, below 0.1 GB in MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
