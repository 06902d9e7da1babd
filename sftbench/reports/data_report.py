"""A check of data files before anything is trained: shapes, bad rows, lengths, leaks, characters."""

import contextlib
import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.chat_template import describe_template
from ..data.conversations import parse_row
from ..data.roles import DROPPED_EXAMPLES, Role, load_system_prompts, split_role
from ..data.rows import Rows, read_rows
from ..data.tokenization import cut_rows, encode_role
from ..errors import BadInput
from ..models.loading import load_model_config, load_tokenizer, silence_libraries
from ..recipes.hyperparameters import resolve_recipe
from ..recipes.recipe import ROLES, Recipe, override, suggest_name
from ..sources.origins import open_sources
from ..training.prepare import measure_facts
from .html import make_visible
from .plots import figure_png, histogram_borders, length_figure
from .text_table import format_pairs, format_table, plural, wrap_text
from .token_view import SAMPLED_ROWS, Script, count_scripts

NAME_WIDTH = 16  # columns of the report's names
LISTED = 12  # types and scripts that are named
QUANTILES = {"shortest": 0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1}
ALL_ROWS = 10**9  # rows of a probe: all of them, so that no row in both is missed
BAD = 1.0  # tokens per character from which on a script counts as badly split


@dataclass(frozen=True)
class TokenCounts:
    """What the tokenizer yields for the usable rows."""

    train: int  # rows
    probe: int  # rows
    template: str
    dropped: dict[str, dict]  # by reason: the number of `rows`, and `examples` of their file and line
    max_length: int
    lengths: np.ndarray  # tokens of each training row
    tokens: int
    trained: int  # of the tokens
    scripts: dict[str, Script]
    costly: dict[str, int]  # characters of several tokens, with their number


@dataclass(frozen=True)
class DataReport:
    """What was counted in a role's data; `counts` is None without a usable row."""

    role: str
    source: str
    model: str
    files: int
    rows: int
    shapes: dict[str, int]
    types: dict[str, int]  # values of the rows' field `type`
    systems: int  # rows with a system message
    bad: int
    first_bad: list[str]
    other_shape: int  # rows that would do as text for tasks, or the other way round
    duplicates: int
    first_duplicates: list[tuple[str, str]]  # file and line of a row and of the earlier equal one
    probe_rows: int | None  # None: no probe is given, so one is split off
    probe_bad: int
    probe_first_bad: list[str]
    max_length_given: bool
    counts: TokenCounts | None

    @property
    def untrainable(self) -> str:
        """Why nothing is left to train; empty where something is, or where no row can be used at all."""
        counts = self.counts
        if counts is None or counts.trained:
            return ""
        if not counts.train:
            return "every row is also in the probe"
        why = ", ".join(f"{reason}: {plural(rows['rows'], 'row')}" for reason, rows in counts.dropped.items())
        return f"no token within max_length {counts.max_length}" + f" ({why})" * bool(why)

    @property
    def stops(self) -> list[str]:
        """What would stop a run on these data, and what to do about it."""
        bad = self.bad + self.probe_bad
        cases = {f"{plural(bad, 'row')} would stop a run; correct them, or run with -p bad_rows drop": bad,
                 f"{self.role}: no usable row, so a run stops here": not self.rows,
                 f"{self.role}_probe: no usable row, so a run stops here": self.probe_rows == 0,
                 f"{self.role}: nothing to train: {self.untrainable}, so a run stops here; take a larger "
                 "max_length or another probe": self.untrainable}
        return [text for text, applies in cases.items() if applies]

    def to_dict(self) -> dict:
        """The report ready for JSON: instead of each row's length their quantiles."""
        values = dataclasses.asdict(self) | {"stops": self.stops}
        if self.counts:
            values["counts"]["lengths"] = self.quantiles()
        return values

    def quantiles(self) -> dict[str, int]:
        """Lengths of training rows in tokens, from the shortest to the longest."""
        lengths = self.counts.lengths
        return {name: int(np.quantile(lengths, share)) for name, share in QUANTILES.items() if len(lengths)}


def measure_data(source: str, role: str | None = None, probe: str | None = None, **fields) -> DataReport:
    """Read and count a role's data; `source` and its `probe` are files, folders or hub names, as in a recipe.

    `role` is recognised from the file's name or its first row if it is not given; `fields` are other fields
    of a recipe (`model`, `max_length`, `system_prompts`). Raises BadInput for files that cannot be read;
    rows that cannot be used are counted and named.
    """
    silence_libraries()
    role = _role_of(source) if role is None else role
    if role not in ROLES:
        raise BadInput(f"no role {role!r}{suggest_name(role, ROLES)}; roles are {', '.join(ROLES)}",
                       field="role")
    recipe = override(Recipe(), bad_rows="drop", probe_rows=ALL_ROWS,
                      **fields, **{role: source, f"{role}_probe": probe})
    kind, systems = role.split("_")[1], load_system_prompts(recipe.system_prompts, role)
    rows = read_rows(open_sources(source, role), kind, systems)
    probe_rows = read_rows(open_sources(probe, f"{role}_probe"), kind, systems) if probe else None
    duplicates, first_duplicates = _duplicates(rows)
    about, probe_about = rows.about, probe_rows.about if probe_rows else {"bad": 0, "first_bad": []}
    other_kind = "text" if kind == "tasks" else "tasks"
    return DataReport(
        role=role, source=source, model=recipe.model, files=len(rows.origins), rows=len(rows.table),
        **{name: about[name] for name in ("shapes", "types", "systems", "bad", "first_bad")},
        other_shape=len(read_rows(open_sources(source, role), other_kind).table) if about["bad"] else 0,
        duplicates=duplicates, first_duplicates=first_duplicates,
        probe_rows=len(probe_rows.table) if probe_rows else None, probe_bad=probe_about["bad"],
        probe_first_bad=probe_about["first_bad"], max_length_given=recipe.max_length is not None,
        counts=_count_tokens(recipe, role, split_role(source, rows, probe_rows, recipe, systems))
        if len(rows.table) else None)


def _role_of(source: str) -> str:
    """The role in the file's name, or the domain's role that fits its first usable row."""
    if (named := Path(source).stem.removesuffix("_probe")) in ROLES:
        return named
    for origin in open_sources(source, "data"):
        for _, record in origin.records():
            with contextlib.suppress(BadInput):
                if not isinstance(record, BadInput):
                    shape = parse_row(record, None, origin.shape).shape
                    return "domain_text" if shape == "text" else "domain_tasks"
    return "domain_tasks"


def _duplicates(rows: Rows) -> tuple[int, list[tuple[str, str]]]:
    """The number of rows that repeat an earlier one, and where the first of them are."""
    _, first, back = np.unique(rows.names[0], return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[back] != np.arange(len(back)))
    return len(repeated), [(rows.where(index), rows.where(first[back[index]]))
                           for index in repeated[:DROPPED_EXAMPLES]]


def _count_tokens(recipe: Recipe, name: str, role: Role) -> TokenCounts:
    """Tokens of the training rows, cut and dropped as a run would."""
    tokenizer = load_tokenizer(recipe.model)
    tokens = encode_role(tokenizer, role)
    config = load_model_config(recipe.model)
    facts = measure_facts(config, recipe.model, tokenizer, {name: role}, {name: tokens})
    max_length = resolve_recipe(recipe, facts)[0].max_length
    pieces, reasons = cut_rows(tokens, max_length, name.endswith("_text"))
    for reason, rows in reasons.items():
        role.drop(reason, role.chosen[rows])
    scripts, costly = count_scripts(tokenizer, role)
    return TokenCounts(
        train=len(role.train), probe=len(role.probe), template=describe_template(tokenizer, role.rows.uses),
        # rows that cannot be used are reported by themselves
        dropped={reason: rows for reason, rows in role.dropped.items() if reason != "cannot be used"},
        max_length=max_length, lengths=tokens.lengths, tokens=int(tokens.lengths.sum()),
        trained=int(pieces.trained.sum()), scripts=scripts, costly=costly)


def check_data(source: str, role: str | None = None, probe: str | None = None,
               picture: str | Path | None = None, **fields) -> str:
    """`measure_data` as text of at most 100 columns; `picture` is where a PNG of the lengths goes."""
    report = measure_data(source, role, probe, **fields)
    if picture:
        draw_lengths(report, picture)
    return format_report(report)


def draw_lengths(report: DataReport, picture: str | Path) -> None:
    """Write the histogram of lengths as PNG, where there are any."""
    if counts := report.counts:
        title = (f"{report.role.replace('_', ' ')}: {counts.train:,} training rows, "
                 f"{counts.tokens:,} tokens, {counts.trained:,} trained")
        figure = length_figure(report.role, counts.lengths, counts.max_length, title)
        Path(picture).parent.mkdir(parents=True, exist_ok=True)
        Path(picture).write_bytes(figure_png(figure))


def format_report(report: DataReport) -> str:
    """The report as text of at most 100 columns."""
    parts = [f"{make_visible(report.source)} as {report.role}",
             format_pairs(_row_pairs(report), indent=2, width=NAME_WIDTH)]
    if counts := report.counts:
        yours = " (name yours with --model)" * (report.model == Recipe().model)
        parts += [f"\nTokens by {report.model}{yours}",
                  format_pairs(_token_pairs(report, counts), indent=2, width=NAME_WIDTH)]
        parts += [f"\n{_script_text(counts)}"] if counts.scripts else []
    return "\n".join(parts)


def _row_pairs(report: DataReport) -> list[tuple[str, str]]:
    """Rows and their shapes, bad rows, duplicates, system messages; what trains, what is dropped."""
    shapes = ", ".join(f"{name} {count:,}" for name, count in report.shapes.items()) or "none"
    pairs = [("rows", f"{report.rows:,} in {plural(report.files, 'file')}, by shape: {shapes}"),
             ("cannot be used", _bad_rows(report.bad, report.first_bad))]
    if 0 < report.other_shape <= report.bad:
        would, not_as = ("text", "tasks") if report.role.endswith("_tasks") else ("tasks", "text")
        pairs.append(("", f"{plural(report.other_shape, 'row')} of the file would do as {would}, not as "
                          f"{not_as}: check text and tasks separately, or name the role with --role"))
    if report.probe_bad:
        pairs.append(("bad in the probe", _bad_rows(report.probe_bad, report.probe_first_bad)))
    first = "; {} repeats {}".format(*report.first_duplicates[0]) if report.duplicates else ""
    pairs.append(("duplicates", plural(report.duplicates, "row") + make_visible(first)))
    if report.types or report.systems:
        kinds = ", ".join(f"{make_visible(kind, 40)} {count:,}"
                          for kind, count in list(report.types.items())[:LISTED])
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


def _bad_rows(count: int, first: list[str]) -> str:
    """How many rows cannot be used, and on lines of their own the first, each with what is wrong."""
    stops = "; they stop a run unless bad_rows is drop" * bool(count)
    return "\n".join([plural(count, "row") + stops, *(make_visible(one, 300) for one in first)])


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
        badly = name not in ("digits", "signs", "control") and rate >= BAD
        notes = ["badly split: more tokens than characters"] * badly
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
