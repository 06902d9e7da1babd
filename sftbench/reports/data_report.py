"""The check of data files as text and picture: what they hold, what nothing reads, the verdict."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from ..data.rows import NAMED_BAD_ROWS
from ..errors import BadInput
from ..recipes.recipe import Recipe
from ..training.data_check import DataReport, TokenCounts, measure_data
from ..training.scripts import SAMPLED_ROWS
from .html import make_visible
from .text_table import format_counts, format_pairs, format_table, plural, wrap_text

NAME_WIDTH = 16  # columns of the report's names
LISTED = 12  # types and scripts that are named


def check_data(source: str, role: str | None = None, probe: str | None = None,
               picture: str | Path | None = None, **fields) -> str:
    """`measure_data` as text of at most 100 columns; `picture` is where a PNG of the lengths goes."""
    report = measure_data(source, role, probe, **fields)
    if picture:
        draw_lengths(report, picture)
    return format_report(report, picture)


def draw_lengths(report: DataReport, picture: str | Path) -> None:
    """Write the histogram of lengths as PNG, where there are any."""
    if counts := report.counts:
        title = (f"{report.role.replace('_', ' ')}: {counts.train:,} training rows, "
                 f"{counts.tokens:,} tokens, {counts.trained:,} trained")
        from .plots import figure_png, length_figure  # here, since matplotlib takes half a second to load
        borders = histogram_borders(counts.lengths, 50)
        figure = length_figure(report.role, counts.lengths, borders, counts.max_length, title)
        Path(picture).parent.mkdir(parents=True, exist_ok=True)
        Path(picture).write_bytes(figure_png(figure))


def format_report(report: DataReport, picture: str | Path | None = None) -> str:
    """The report as text of at most 100 columns, with the verdict at its end; `picture` was drawn."""
    parts = [f"{make_visible(report.source)} as {report.role}",
             format_pairs(_row_pairs(report), indent=2, width=NAME_WIDTH)]
    if counts := report.counts:
        yours = " (name yours with --model)" * (report.model == Recipe().model)
        parts += [f"\nTokens by {report.model}{yours}",
                  format_pairs(_token_pairs(report, counts), indent=2, width=NAME_WIDTH)]
        parts += [f"\n{_script_text(counts)}"] if counts.scripts else []
    parts += [f"\nhistogram: {picture}"] * bool(picture and report.counts)
    return "\n".join([*parts, "", format_verdict(report)])


def format_verdict(report: DataReport) -> str:
    """Whether a run may start, and below it a line for each reason against that, or warning."""
    reasons = [make_visible(reason) for reason in report.stops or report.warnings]
    return "\n".join([f"Verdict: {report.verdict}", *(wrap_text(f"  - {reason}") for reason in reasons)])


def _row_pairs(report: DataReport) -> list[tuple[str, str]]:
    """Rows and their shapes, what cannot be used and why, what nothing reads, duplicates, the split."""
    shapes = format_counts(report.shapes, "{name} {count:,}", LISTED) or "none"
    pairs = [("rows", f"{report.rows:,} in {plural(report.files, 'file')}, by shape: {shapes}")]
    if report.unreadable:
        pairs.append(("cannot be read", _list_faults(plural(len(report.unreadable), "file"),
                                                     report.unreadable)))
    if report.passed_over:
        pairs.append(("passed over", _list_faults(plural(len(report.passed_over), "name"), [
            f"{name}: {why}" for name, why in report.passed_over.items()])))
    pairs += [("texts", _list_first([make_visible(note, 300) for note in report.notes]))] * bool(report.notes)
    pairs += _bad_pairs(report)
    pairs += [("not used", format_counts(report.unused))] * bool(report.unused)
    first = "; {} repeats {}".format(*report.first_duplicates[0]) if report.duplicates else ""
    pairs.append(("duplicates", plural(report.duplicates, "row") + make_visible(first)))
    if report.types or report.systems:
        kinds = format_counts(report.types, "{name} {count:,}", LISTED)
        pairs.append(("system messages", f"{plural(report.systems, 'row')} with one"
                      + f"; types: {kinds}" * bool(kinds)))
    if counts := report.counts:
        how = "split off by hash" if report.probe_rows is None else "given"
        pairs.append(("training, probe", f"{plural(counts.train, 'row')} to train on, "
                                         f"{counts.probe:,} in the probe ({how})"))
        dropped = [f"{reason}: {plural(rows['rows'], 'row')}, first {'; '.join(rows['examples'][:3])}"
                   for reason, rows in counts.dropped.items()]
        pairs += [("dropped or cut", "\n".join(map(make_visible, dropped)))] * bool(dropped)
    return pairs


def _bad_pairs(report: DataReport) -> list[tuple[str, str]]:
    """Rows that cannot be used: how many, the first of them, how many for which reason, what may help."""
    bad, room = report.bad, NAMED_BAD_ROWS - len(report.first_bad)
    stops = ("; they stop a run" + " unless bad_rows is drop" * (report.rows > 1)) * bool(bad)
    pairs = [("cannot be used", _list_faults(plural(bad, "row") + stops, report.first_bad))]
    if bad > len(report.first_bad):
        reasons = [f"{count:,}: {make_visible(reason, 200)}" for reason, count in report.bad_reasons.items()]
        pairs.append(("by reason", _list_first(reasons)))
    if 0 < report.other_shape <= bad:
        would, not_as = ("text", "tasks") if report.role.endswith("_tasks") else ("tasks", "text")
        pairs.append(("", f"{plural(report.other_shape, 'row')} of the file would do as {would}, not as "
                          f"{not_as}: check text and tasks separately, or name the role with --role"))
    if report.probe_bad:
        pairs.append(("bad in the probe", _list_faults(plural(report.probe_bad, "row"),
                                                       report.probe_first_bad[:max(room, 1)])))
    return pairs


def _list_faults(what: str, faults: list[str]) -> str:
    """What is at fault, and on lines of their own the first faults."""
    return "\n".join([what, _list_first([make_visible(one, 300) for one in faults])]).strip()


def _list_first(lines: list[str]) -> str:
    """The first of the lines, and how many more there are."""
    more = len(lines) - NAMED_BAD_ROWS
    return "\n".join([*lines[:NAMED_BAD_ROWS], *[f"and {more:,} more"] * (more > 0)])


def _token_pairs(report: DataReport, counts: TokenCounts) -> list[tuple[str, str]]:
    """Tokens of the rows: how many, how long the rows are, what `max_length` does to them."""
    is_text, longer = report.role.endswith("_text"), int((counts.lengths > counts.max_length).sum())
    pairs = [] if is_text else [("chat template", counts.template)]
    pairs.append(("tokens", f"{counts.tokens:,} in training rows, {counts.trained:,} of them trained"
                  + f"\nNOTHING TO TRAIN: {report.untrainable}; a run stops" * bool(report.untrainable)))
    if len(counts.lengths):
        lengths = ("{shortest:,} to {longest:,}, median {median:,}; 10 % have up to {10 %:,}, "
                   "90 % up to {90 %:,}, 99 % up to {99 %:,}").format(**report.quantiles())
        pairs.append(("tokens of a row", "\n".join([lengths, *_bars(counts.lengths)])))
    fate = (", cut into pieces" if is_text else ", dropped") * bool(longer)
    note = (f"; a run takes its length from the task rows ({counts.max_length:,} here, since none are known)"
            * (is_text and not report.max_length_given))
    limit = f"{counts.max_length:,}; longer than that: {plural(longer, 'row')}{fate}{note}"
    return [*pairs, ("max_length", limit)]


def _bars(lengths: np.ndarray) -> list[str]:
    """The histogram of lengths in characters, a line a bar."""
    counts, borders = np.histogram(lengths, histogram_borders(lengths, 8))
    return [f"{f'{left:,}–{right - 1:,}' if right - left > 1 else f'{left:,}':<15} "
            f"{'█' * round(40 * count / counts.max()):<40} {count:,}"
            for left, right, count in zip(borders, borders[1:], counts, strict=False)]


def _script_text(counts: TokenCounts) -> str:
    """The scripts as a table, and the characters of several tokens."""
    total, rows = sum(script.characters for script in counts.scripts.values()), []
    for name, script in list(counts.scripts.items())[:LISTED]:
        rate = script.tokens / script.characters
        notes = ["badly split: more tokens than characters"] * script.badly_split
        notes += [f"{script.unknown:,} unknown"] * bool(script.unknown)
        rows.append([name, f"{script.characters / total:.1%}", f"{rate:.2f}", ", ".join(notes)])
    sampled = plural(min(counts.train, SAMPLED_ROWS), "row")
    text = format_table(rows, [f"characters (of {sampled})", "share", "tokens per character", ""])
    by_size = defaultdict(list)
    for letter, size in counts.costly.items():
        by_size[size].append(make_visible(letter))
    costs = "; ".join(f"{size} for each of {' '.join(letters)}" for size, letters in by_size.items())
    return text + f"\n{wrap_text(f'most tokens of one character: {costs}')}" * bool(costs)


def join_sources(files: list[str]) -> str:
    """Several sources as one, as a recipe's field takes them."""
    if len(files) == 1:
        return files[0]
    for file in files:
        if '"' in file:
            raise BadInput(f"{file}: a name with double quotes cannot be in a list; rename it", where=file)
    return ", ".join(f'"{file}"' if "," in file and Path(file).exists() else file for file in files)


def histogram_borders(lengths: np.ndarray, count: int) -> np.ndarray:
    """Borders for a histogram of lengths: even, or growing where a few rows are far longer than others."""
    low, high = int(lengths.min()), int(lengths.max()) + 1
    if high > 20 * max(1, np.median(lengths)):
        return np.unique(np.geomspace(max(1, low), high, count + 1).astype(int))
    return np.unique(np.linspace(low, high, min(count, high - low) + 1).astype(int))
