"""The ledger: what a run gained in the domain and lost elsewhere, stage by stage; and the forecast."""

from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from ..runs.events import format_duration
from ..runs.folder import read_json, read_result
from .text_table import format_table, plural, wrap_text

COLUMNS = ("domain_tasks", "domain_text", "general_tasks", "general_text", "yardstick")
MEASURES = {"loss": 6, "accuracy": 8, "f1": 5}  # with the width of their figures
COSTS = ("stage", "method", "parameters", "  trained", "steps", "tokens", "time", "  forecast", "memory",
         "  forecast", "from the store")
BLANK = "\ue000"  # stands for a space at a cell's end, which rich (15) would cut off
UNITS = "Loss in nats per token; accuracy and F1 from 0 to 1."
SPREAD = ("95 %: where a figure may lie with other rows of the same kind (bootstrap over rows, of changes in "
          "pairs); another seed of training is not counted.")
FEW_PROBE_ROWS = 20  # rows of a probe below which chance outweighs what training usually changes
SMALL_RISE = 0.05  # nats per token: a smaller rise of the loss is hardly to be seen in what a model writes


def format_ledger(run: Path | str) -> str:
    """The table of a finished run, read from its folder: probes by stage, the change, and what it cost.

    Raises BadInput where the run is not complete.
    """
    result = read_result(run)
    stored = read_json(run, "recipe.json") if (Path(run) / "recipe.json").exists() else {}
    sizes = {role.replace("_", " "): rows for role in COLUMNS
             if (rows := stored.get("data", {}).get(role, {}).get("probe_rows"))}
    scored = ("Rows scored: " + ", ".join(f"{role} {rows:,}" for role, rows in sizes.items()) if sizes else
              f"At most {result['recipe']['probe_rows']} rows of each probe scored")
    origin = stored.get("reasons", {}).get("start_model")
    head = f"Mode {result['recipe']['mode']} from {result['start']['model']}" + f", {origin}" * bool(origin)
    text = f"{wrap_text(head)}\n{wrap_text(scored)}\n\n{format_result_ledger(result)}"
    if few := ", ".join(f"{role} ({rows})" for role, rows in sizes.items() if rows < FEW_PROBE_ROWS):
        text += "\n" + wrap_text(f"Warning: too few probe rows to tell a change from chance: {few}.")
    return text


def format_result_ledger(result: dict) -> str:
    """The same from a result already read."""
    start, stages = result["start"], result["stages"]
    alone = result.get("prompt_alone")
    states = {f"start ({start['name']})": start, **({"prompt alone": alone} if alone else {}),
              **{stage["name"]: stage for stage in stages}}
    sentences = _summary(start["probes"], stages[-1]["probes"], result.get("scorers", {}))
    sentences += _beside_prompt(alone, stages[-1]) if alone else []
    sentences += [_kept_point(stage, result) for stage in stages if "best" in stage]
    if any(state.get("intervals") for state in states.values()):
        sentences += [SPREAD, *_by_chance(start["probes"], stages[-1])]
    return "\n\n".join([format_probe_table(states), _cost_table(result),
                        "\n".join(map(wrap_text, [UNITS, *sentences]))])


def format_rescored(scored: dict) -> str:
    """What `score_run` found as text: the table of probes by state, which scorers, what is chance."""
    states = list(scored["states"].values())
    by = "; ".join(f"{role.replace('_', ' ')}: " + ", ".join(
        f"{name} ({plural(rows, 'row')})" for name, rows in counts.items())
        for role, counts in scored["scorers"].items())
    sentences = [UNITS, f"Scorers: {by}." if by else "", SPREAD, *_by_chance(states[0]["probes"], states[-1])]
    return f"{format_probe_table(scored['states'])}\n\n" + "\n".join(map(wrap_text, filter(None, sentences)))


def format_partial_ledger(events: list[dict]) -> str:
    """The table of a run in progress, from its events: a line for each scored state; empty without one."""
    plan = next((event["plan"] for event in events if "plan" in event), {})
    states = {}
    for event in events:
        probes = {role: {measure: event[name] for measure in MEASURES
                         if event.get(name := f"eval_{role}_{measure}") is not None} for role in COLUMNS}
        # in the middle of a stage, and at its begin, only a part of each probe is scored
        complete = "steps" not in event and event["step"] == {"start": 0, **plan}.get(event["stage"])
        if complete and any(probes.values()):
            states[event["stage"]] = {
                "probes": {role: measures for role, measures in probes.items() if measures}}
    return format_probe_table(states) if states else ""


def format_probe_table(states: dict[str, dict]) -> str:
    """The table of probes by state, with the change from the first to the last where there are two.

    A state has `probes`, and perhaps `intervals` and `change_intervals`, which stand below its figures.
    """
    lines = [line for name, state in states.items() for line in (
        (name, _cells(state["probes"], lambda value: str(rounded(value)))),
        ("  95 %", _cells(state.get("intervals", {}), lambda span: "–".join(map(str, map(rounded, span))))))]
    first, *_, last = states.values() if len(states) > 1 else (None, None)
    change = _change_lines(first["probes"], last) if last else []
    return _lay_out([*lines, *change], list(states.values())[-1]["probes"], len(change))


def _change_lines(first: dict, last: dict) -> list[tuple[str, dict]]:
    """How the last state's figures differ from the first one's, and below the interval of that."""
    changes = {role: {measure: rounded(value, first[role][measure]) for measure, value in measures.items()
                      if measure in MEASURES} for role, measures in last["probes"].items()}
    spans = _cells(last.get("change_intervals", {}),
                   lambda span: "…".join(f"{rounded(value):+}" for value in span))
    return [("change", _cells(changes, "{:+}".format)), *([("  95 %", spans)] if spans else [])]


def _lay_out(lines: list[tuple[str, dict]], probes: dict[str, dict], total: int) -> str:
    """Named lines of `_cells` as a table: a column for each probe, in it a figure for each measure."""
    measures = {role: [measure for measure in MEASURES if measure in probes[role]]
                for role in COLUMNS if role in probes}
    widths = {(role, measure): max(len(cells.get((role, measure), "")) for _, cells in lines)
              for role in measures for measure in measures[role]}

    def join(role: str, cells: dict) -> str:
        return "  ".join(cells.get((role, measure), "").rjust(
            max(MEASURES[measure], widths[role, measure]), BLANK) for measure in measures[role])

    rows = [[name, *(join(role, cells) if any(own == role for own, _ in cells) else "" for role in measures)]
            for name, cells in lines]
    headings = [f"{role.replace('_', ' ')}\n{join(role, {(role, measure): measure for measure in names})}"
                for role, names in measures.items()]
    table = format_table(rows, ["probe after", *headings], gap=4, total=total).replace(BLANK, " ")
    return "\n".join(map(str.rstrip, table.splitlines()))


def _cells(roles: dict[str, dict], form: Callable[[Any], str]) -> dict[tuple[str, str], str]:
    """By role and measure what stands in the table; yardstick's figures by language do not."""
    return {(role, measure): form(value) for role, measures in roles.items()
            for measure, value in measures.items() if measure in MEASURES}


def _beside_prompt(alone: dict, last: dict) -> list[str]:
    """A sentence: what the start model does by its prompt alone, and whether training beats that."""
    role, figures = next(iter(alone["probes"].items()))
    low, high = alone.get("change_intervals", {}).get(role, {}).get("accuracy", (0, 0))
    change = last["probes"][role]["accuracy"] - figures["accuracy"]
    verdict = ("which is within chance" if low <= 0 <= high else
               "training beats the prompt" if change > 0 else "the prompt beats training")
    shown, trained = plural(alone["examples"], "training row"), last["probes"][role]["accuracy"]
    return [f"Prompt alone ({shown} shown to the start model): {_percent(figures['accuracy'])}; trained "
            f"{_percent(trained)}: {verdict}."]


def _kept_point(stage: dict, result: dict) -> str:
    """A sentence: which point of a stage is its result, and whether it ended early."""
    best, planned = stage["best"], result["forecast"]["steps"][stage["name"]]
    early = f", of {planned:,} planned" if stage["steps"] < planned else ""
    role = best["role"].replace("_", " ")
    return (f"Stage {stage['name']} is as after step {best['step']:,} of {stage['steps']:,}{early}: there "
            f"the loss of {role} was lowest, on a part of its probe, which favours that probe a little.")


def _by_chance(first: dict, last: dict) -> list[str]:
    """A sentence that names the changes that other rows of the same kind could undo, if there are any."""
    found = []
    for role, spans in last.get("change_intervals", {}).items():
        for measure, (low, high) in spans.items():
            change = rounded(last["probes"][role][measure], first[role][measure])
            if change and low <= 0 <= high:
                found.append(f"{measure} of {role.replace('_', ' ')} ({change:+})")
    return [f"Within chance: {', '.join(found)}."] if found else []


def rounded(value: float, less: float = 0) -> Decimal:
    """What a probe's figure is (above another) with two decimals, half up: table and sentences agree."""
    return (Decimal(str(value)) - Decimal(str(less))).quantize(Decimal("0.01"), ROUND_HALF_UP) + 0


def _percent(value: float) -> str:
    return f"{int(rounded(value) * 100)}%"


def _cost_table(result: dict) -> str:
    """What each stage trained and took, beside its forecast where it was trained in this run."""
    predicted = result.get("forecast", {}).get("stages", {})
    columns = [_stage_costs(stage, {} if stage["reused"] else predicted.get(stage["name"], {}))
               for stage in result["stages"]]
    headings, *rows = zip(COSTS, *columns, strict=True)
    return format_table(rows, headings)


def _stage_costs(stage: dict, forecast: dict) -> list[str]:
    trained, total = stage["trainable_parameters"], stage["parameters"]
    return [stage["name"], stage["method"], f"{total:,}", f"{trained:,} ({trained / total:.1%})",
            f"{stage['steps']:,}", f"{stage['tokens']:,}",
            format_duration(stage["seconds"]), _seconds(forecast.get("seconds")),
            *(format_gigabytes(one.get("peak_memory_bytes")) for one in (stage, forecast)),
            "yes" if stage["reused"] else ""]


def _summary(first: dict, last: dict, scorers: dict) -> list[str]:
    """The table in words: the domain's gain, and what was forgotten; `scorers` of rows by role and name."""
    def pair(role: str, measure: str) -> tuple[float, float]:
        return first[role][measure], last[role][measure]

    sentences = []
    for role, words in (("domain_tasks", "In the domain"), ("general_tasks", "In general")):
        if "accuracy" in last.get(role, {}):
            before, after = map(_percent, pair(role, "accuracy"))
            by = scorers.get(role, {"exact": 0})
            names = ", ".join(f"{name} ({plural(rows, 'row')})" for name, rows in by.items())
            sentences.append(f"{words}: {before} of the probe's questions answered exactly as wanted before, "
                             f"{after} after." if by.keys() == {"exact"} else
                             f"{words}: accuracy {before} before, {after} after, by the scorer {names}.")
    if "loss" in last.get("general_text", {}):
        before, after = pair("general_text", "loss")
        rise = rounded(after, before)
        much = "little was forgotten" if after - before < SMALL_RISE else "so much was forgotten"
        change = f"rose by {rise}: {much}" if rise > 0 else "fell" if rise < 0 else "hardly changed"
        sentences.append(f"Loss on general text {rounded(before)} -> {rounded(after)} nats per token; "
                         f"it {change}.")
    if "yardstick" in last:
        english, chinese = (" -> ".join(map(_percent, pair("yardstick", f"accuracy_{language}")))
                            for language in ("en", "zh"))
        sentences.append(f"Yardstick (built-in general probe), questions right: English {english}, "
                         f"Chinese {chinese} (chance: 25%).")
    return sentences


REMEDIES = {"fits": [], "tight": ["Another program or a longer row may be too much."],
            "does not fit": ["Take a smaller batch with more accumulation, a shorter max_length, "
                             "gradient_checkpointing, or lora or qlora."]}


def format_forecast(forecast: dict) -> str:
    """A forecast (`sftbench.forecast`) as text: each stage's steps, time, memory by part; whether it fits."""
    names, stages = list(forecast["stages"]), list(forecast["stages"].values())
    rows = [["steps", *(f"{forecast['steps'][name]:,}" for name in names)],
            ["time", *(_seconds(stage["seconds"]) for stage in stages)],
            ["memory", *(format_gigabytes(stage["peak_memory_bytes"]) for stage in stages)]]
    # a stage whose model could not be counted has no parts
    rows += [[f"  {part}", *(format_gigabytes(stage["memory"].get(part)) for stage in stages)]
             for part in dict.fromkeys(part for stage in stages for part in stage["memory"])]
    time = "not measured" + (f", since {forecast['untimed']}" if forecast.get("untimed") else "")
    if forecast["seconds"] is not None:
        time = (f"{format_duration(forecast['seconds'])}, of it {format_duration(forecast['probe_seconds'])} "
                "whenever the probes are scored")
    sentences = [f"Time: {time}."]
    if fits := forecast["fits"]:
        peak, room = (format_gigabytes(forecast[name]) for name in ("peak_memory_bytes", "room_bytes"))
        sentences += [f"Memory: {fits}; {peak} at most, {room} are free for it.", *REMEDIES[fits]]
    return "\n".join([format_table(rows, ["forecast", *names]), "", *map(wrap_text, sentences)])


def _seconds(seconds: float | None) -> str:
    """A stage's forecast time; a stage that is stored takes none."""
    return "" if seconds is None else "in the store already" if seconds == 0 else format_duration(seconds)


def format_gigabytes(size: int | None) -> str:
    """Bytes as a person reads them: `1.25 GB`, below 0.1 GB in MB; empty where they are not known."""
    return "" if not size else f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
