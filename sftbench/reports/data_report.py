"""A check of data files before anything is trained: shapes, bad rows, lengths, leaks, characters."""

import textwrap
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ..data.chat_template import describe_template
from ..data.conversations import parse_row
from ..data.readers import open_sources
from ..data.roles import DROPPED_EXAMPLES, Role, Rows, load_system_prompts, read_rows, split_role
from ..data.tokenization import cut_rows, encode_role
from ..errors import BadInput
from ..models.loading import load_model_config, load_tokenizer, silence_libraries
from ..recipes.hyperparameters import resolve_recipe
from ..recipes.recipe import ROLES, Recipe, override, suggest_name
from ..training.prepare import measure_facts
from .html import make_visible
from .plots import COLOURS, figure_png

TEXT_WIDTH = 100
DROP_REASONS = ("also in the probe", "task longer than max_length", "nothing to train", "text cut",
            "left out by its file's weight")
SAMPLED_ROWS = 2000  # rows, evenly spread, whose characters are looked at
QUANTILES = {"shortest": 0, "10 % up to": 0.1, "median": 0.5, "90 % up to": 0.9, "99 % up to": 0.99,
             "longest": 1}
ALL_ROWS = 10**9  # rows of a probe: all of them, so that every row in both is found
BAD = 1.0  # tokens per character from which on a script counts as badly split


def measure_data(source: str, role: str | None = None, model: str = "pocket", probe: str | None = None,
            max_length: int | None = None, system_prompts: str | None = None) -> dict:
    """What there is to know of a role's data (`source` as in a recipe), as plain numbers and texts.

    `role` is recognised from the first row if it is not given. Raises BadInput for files that cannot be read;
    rows that cannot be used are counted and named. Without usable rows the result has no `tokens`.
    """
    silence_libraries()
    if role is not None and role not in ROLES:
        raise BadInput(f"no role {role!r}{suggest_name(role, ROLES)}; roles are {', '.join(ROLES)}")
    role = role or _role_of(source)
    recipe = override(Recipe(), model=model, max_length=max_length, system_prompts=system_prompts,
                      bad_rows="drop", probe_rows=ALL_ROWS, **{role: source, f"{role}_probe": probe})
    systems = load_system_prompts(system_prompts, role)
    read = read_rows(open_sources(source, role), role.split("_")[1], systems)
    held = read_rows(open_sources(probe, f"{role}_probe"), role.split("_")[1], systems) if probe else None
    report = {"role": role, "source": source, "model": model, "rows": len(read.table),
              "files": len(read.about["files"]), "duplicates": _duplicates(read),
              "probe_given": probe is not None, "max_length_given": max_length is not None,
              "probe_bad": held.about["bad"] if held else 0,
              "probe_first_bad": held.about["first_bad"] if held else []}
    report |= {name: read.about[name] for name in ("shapes", "types", "systems", "bad", "first_bad")}
    if report["rows"]:
        _measure_tokens(report, recipe, split_role(source, read, held, recipe, systems))
    if report["bad"]:
        report["other_shape"] = len(read_rows(
            open_sources(source, role), "text" if role.endswith("_tasks") else "tasks").table)
    return report | {"stops": _stops(report, held)}


def _stops(report: dict, held: Rows | None) -> list[str]:
    """What would stop a run on these data, and what to do about it."""
    role, dropped = report["role"], report.get("dropped", {})
    bad, found = report["bad"] + report["probe_bad"], []
    if bad:
        found.append(f"{bad:,} rows would stop a run; mend them, or run with -p bad_rows drop")
    if not report["rows"]:
        found.append(f"{role}: no usable row, so a run stops here")
    if held and not len(held.table):
        found.append(f"{role}_probe: no usable row, so a run stops here")
    if report["rows"] and not report["train"]:
        found.append(f"{role}: nothing to train: every row is also in the probe, so a run stops here; "
                     "give another probe")
    elif report["rows"] and not report["trained"]:
        why = ", ".join(f"{reason}: {dropped[reason]['rows']:,} rows" for reason in DROP_REASONS
                        if reason in dropped)
        found.append(f"{role}: nothing to train within max_length {report['max_length']}"
                     + f" ({why})" * bool(why) + ", so a run stops here")
    return found


def _role_of(source: str) -> str:
    """The role that the file is named after, or the domain's that its first usable row is fit for."""
    if (named := Path(source).stem.removesuffix("_probe")) in ROLES:
        return named
    for origin in open_sources(source, "data"):
        for _, record in origin.records():
            if not isinstance(record, BadInput):
                try:
                    return "domain_text" if parse_row(record, None, origin.shape)[0] == "text" \
                        else "domain_tasks"
                except BadInput:
                    continue
    return "domain_tasks"


def _duplicates(read: Rows) -> dict:
    """How many rows stand there again, and the first such pairs of places."""
    names, first, back = np.unique(read.names[0], return_index=True, return_inverse=True)
    again = np.flatnonzero(first[back] != np.arange(len(back)))
    return {"rows": len(again), "first": [(read.where(index), read.where(first[back[index]]))
                                          for index in again[:DROPPED_EXAMPLES]]}


def _measure_tokens(report: dict, recipe: Recipe, role: Role) -> None:
    """Add what the tokenizer makes of the training rows."""
    name, tokenizer = report["role"], load_tokenizer(recipe.model)
    report |= {"train": len(role.train), "probe": len(role.probe), "template": describe_template(tokenizer)}
    tokens = encode_role(tokenizer, role)
    facts = measure_facts(load_model_config(recipe.model), recipe.model, tokenizer, {name: role},
                          {name: tokens})
    most = resolve_recipe(recipe, facts)[0].max_length
    pieces, reasons = cut_rows(tokens, most, name.endswith("_text"))
    for reason, found in reasons.items():
        role.drop(reason, role.chosen[found])
    report |= {"dropped": role.dropped, "max_length": most, "lengths": tokens.lengths,
               "tokens": int(tokens.lengths.sum()), "trained": int(pieces.trained.sum()),
               "scripts": _scripts(tokenizer, role)}


def script_of(letter: str) -> str:
    """The script of a letter by its Unicode name, or what else a character is."""
    if letter.isalpha():
        return unicodedata.name(letter, "unnamed letters").split()[0].replace("CJK", "Chinese").capitalize()
    return "digits" if letter.isdigit() else "signs" if letter.isprintable() else "control"


def _scripts(tokenizer, role: Role) -> dict:
    """By script: characters and tokens of a sample of rows; and the characters that cost most tokens."""
    runs, letters = defaultdict(list), Counter()
    for index in np.unique(np.linspace(0, max(0, len(role.train) - 1), SAMPLED_ROWS).astype(int))[
        : len(role.train)
    ]:
        row = role.train[int(index)]
        text = row["text"] if "text" in row else "\n".join(turn["content"] for turn in row["messages"])
        letters.update(letter for letter in text if not letter.isspace())
        for script, run in _runs(text):
            runs[script].append(run)
    scripts = {}
    for script, texts in runs.items():
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        scripts[script] = {"characters": sum(map(len, texts)), "tokens": sum(map(len, ids)),
                           "unknown": sum(part.count(tokenizer.unk_token_id) for part in ids)
                           if tokenizer.unk_token_id is not None else 0}
    common = [letter for letter, _ in letters.most_common(SAMPLED_ROWS)]
    sizes = [len(ids) for ids in tokenizer(common, add_special_tokens=False)["input_ids"]] if common else []
    worst = sorted(zip(common, sizes, strict=True), key=lambda pair: -pair[1])
    return {"by_script": dict(sorted(scripts.items(), key=lambda pair: -pair[1]["characters"])),
            "worst": [(letter, size, letters[letter]) for letter, size in worst[:10] if size > 1]}


def _runs(text: str):
    """The text in runs of one script; white space stays with what stands before it."""
    begin, script = 0, None
    for place, letter in enumerate(text):
        mine = script if letter.isspace() else script_of(letter)
        if mine != script:
            if script is not None:
                yield script, text[begin:place]
                begin = place
            script = mine
    if script is not None:
        yield script, text[begin:]


def check_data(source: str, role: str | None = None, model: str = "pocket", probe: str | None = None,
               max_length: int | None = None, system_prompts: str | None = None,
               picture: str | Path | None = None) -> str:
    """The check as text of at most 100 columns; `picture` is where a histogram of lengths goes, as PNG."""
    report = measure_data(source, role, model, probe, max_length, system_prompts)
    if picture is not None:
        draw_lengths(report, picture)
    return format_report(report)


def draw_lengths(report: dict, picture: str | Path) -> None:
    """Write the histogram of lengths as PNG, where there are any."""
    if "tokens" in report:
        Path(picture).parent.mkdir(parents=True, exist_ok=True)
        Path(picture).write_bytes(figure_png(length_figure(report)))


def format_report(report: dict) -> str:
    """A report of `measure` as text."""
    shape = ", ".join(f"{name} {count:,}" for name, count in report["shapes"].items()) or "none"
    lines = [f"{make_visible(report['source'])} as {report['role']}"]
    files = f"{report['files']:,} files" if report["files"] > 1 else "1 file"
    lines += _line("rows", f"{report['rows']:,} in {files}, by shape: {shape}")
    lines += _bad_lines("cannot be used", report["bad"], report["first_bad"])
    if 0 < (other := report.get("other_shape", 0)) <= report["bad"]:
        have, want = ("text", "tasks") if report["role"].endswith("_tasks") else ("tasks", "text")
        lines += _line("", f"{other:,} rows of the file would do as {have}, not as {want}: check text and "
                           "tasks separately, or name the role with --role")
    if report["probe_bad"]:
        lines += _bad_lines("bad in the probe", report["probe_bad"], report["probe_first_bad"])
    again = report["duplicates"]
    lines += _line("duplicates", f"{again['rows']:,} rows stand there again" + (
        f"; {again['first'][0][0]} is {again['first'][0][1]}" if again["rows"] else ""))
    if report["types"] or report["systems"]:
        types = list(report["types"].items())[:12]
        kinds = ", ".join(f"{make_visible(kind, 40)} {count:,}" for kind, count in types)
        lines += _line("system messages", f"{report['systems']:,} rows have one"
                       + (f"; types: {kinds}" if kinds else ""))
    if "tokens" in report:
        lines += _token_lines(report) + _script_lines(report)
    return "\n".join(lines)


def _bad_lines(name: str, count: int, places: list[str]) -> list[str]:
    lines = _line(name, f"{count:,} rows" + ("; they stop a run unless bad_rows is drop" if count else ""))
    for place in places:
        lines += textwrap.wrap(
            make_visible(place, 300), TEXT_WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 8
        )
    return lines


def _line(name: str, words: str) -> list[str]:
    return textwrap.wrap(words, TEXT_WIDTH, initial_indent=f"  {name:<18}", subsequent_indent=" " * 20,
                         break_on_hyphens=False)


def _token_lines(report: dict) -> list[str]:
    lengths, most = report["lengths"], report["max_length"]
    how = "given" if report["probe_given"] else "split off by hash"
    lines = _line("training, probe", f"{report['train']:,} rows to train on, "
                                     f"{report['probe']:,} in the probe ({how})")
    dropped = dict(report["dropped"])
    for reason in DROP_REASONS:
        if found := dropped.get(reason):
            places = "; ".join(found["examples"][:3])
            lines += _line(reason if len(reason) < 18 else "", ("" if len(reason) < 18 else f"{reason}: ")
                           + f"{found['rows']:,} rows, first {places}")
    lines += ["", f"Tokens by {report['model']} (name yours with --model)" if report["model"] == "pocket"
              else f"Tokens by {report['model']}"]
    lines += _line("chat template", report["template"]) if report["role"].endswith("_tasks") else []
    lines += _line("tokens", f"{report['tokens']:,} in training rows, {report['trained']:,} of them trained")
    if not report["trained"]:
        lines += _line("", "NOTHING TO TRAIN: " + (
            f"no row is left to train on within max_length {most}" if report["train"]
            else "every row is also in the probe") + "; a run stops here")
    if len(lengths):
        lines += _line("tokens of a row", ", ".join(f"{name} {int(np.quantile(lengths, share)):,}"
                                                    for name, share in QUANTILES.items()))
        lines += _bars(lengths)
    is_text = report["role"].endswith("_text")
    lines += _line("max_length", f"{most:,}: {int((lengths > most).sum()):,} rows are longer "
                   + ("and cut into pieces" if is_text else "and dropped") + (
        f"; a run takes its length from the task rows ({most:,} here, since none are known)"
        if is_text and not report["max_length_given"] else ""))
    return lines


def histogram_borders(lengths: np.ndarray, count: int) -> np.ndarray:
    """Borders for a histogram of lengths: even, or growing where a few rows are far longer than most."""
    low, high = int(lengths.min()), int(lengths.max()) + 1
    if high > 20 * max(1, np.median(lengths)):
        return np.unique(np.geomspace(max(1, low), high, count + 1).astype(int))
    return np.unique(np.linspace(low, high, min(count, high - low) + 1).astype(int))


def _bars(lengths: np.ndarray) -> list[str]:
    counts, borders = np.histogram(lengths, histogram_borders(lengths, 8))
    return [f"{'':20}{f'{left:,}–{right - 1:,}' if right - left > 1 else f'{left:,}':<15} "
            f"{'█' * round(40 * count / counts.max()):<40} {count:,}".rstrip()
            for left, right, count in zip(borders, borders[1:], counts, strict=False)]


def _script_lines(report: dict) -> list[str]:
    found = report["scripts"]["by_script"]
    whole = sum(entry["characters"] for entry in found.values()) or 1
    lines = ["", f"Characters (of {min(report['train'], SAMPLED_ROWS):,} rows)",
             f"  {'script':<18}{'share':>7}{'tokens per character':>23}"]
    for script, entry in list(found.items())[:12]:
        rate = entry["tokens"] / entry["characters"]
        badly = script not in ("digits", "signs", "control") and rate >= BAD
        note = "  badly split: more tokens than characters" if badly else ""
        note += f"  {entry['unknown']:,} unknown" if entry["unknown"] else ""
        lines.append(f"  {script:<18}{entry['characters'] / whole:>7.1%}{rate:>23.2f}{note}")
    if report["scripts"]["worst"]:
        words = ", ".join(
            f"{make_visible(letter)}\u00a0{size}" for letter, size, _ in report["scripts"]["worst"]
        )
        lines += _line("tokens of one", f"most for the characters {words}")
    return lines


def length_figure(report: dict) -> Figure:
    """The histogram of the training rows' lengths in tokens, with quantiles and `max_length`."""
    drawn = Figure(figsize=(9.6, 4.0), dpi=100, layout="constrained")
    FigureCanvasAgg(drawn)
    axes, lengths, most = drawn.add_subplot(), report["lengths"], report["max_length"]
    side = report["role"].split("_")[0]
    if len(lengths):
        borders = histogram_borders(lengths, 50)
        axes.hist(lengths, borders, color=COLOURS[side], edgecolor="white", linewidth=0.4)
        if borders[-1] - borders[-2] > borders[1] - borders[0] + 1:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        median = float(np.median(lengths))
        axes.axvline(median, color="#444444", linewidth=1, linestyle=":", label=f"median {median:,.0f}")
        if most <= 3 * lengths.max():
            longer = int((lengths > most).sum())
            axes.axvline(most, color="#A33B00", linewidth=1.4, linestyle="--",
                         label=f"max_length {most:,}: {longer:,} rows are longer")
        axes.legend(loc="upper right", fontsize=9, frameon=False)
    axes.set_xlabel("tokens of a row")
    axes.set_ylabel("rows")
    axes.set_title(f"{report['role'].replace('_', ' ')}: {len(lengths):,} training rows, "
                   f"{report['tokens']:,} tokens, {report['trained']:,} trained", loc="left", fontsize=11)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    return drawn


def join_sources(files: list[str]) -> str:
    """Several sources as one, as a recipe's field takes them."""
    for file in files:
        if '"' in file and len(files) > 1:
            raise BadInput(f"{file}: a name with double quotes cannot stand in a list; rename the file")
    return files[0] if len(files) == 1 else ", ".join(
        f'"{file}"' if "," in file and Path(file).exists() else file for file in files)
