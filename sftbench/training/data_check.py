"""Data checked before anything is trained, as a run would read them, and whether a run may start."""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data.chat_template import describe_template
from ..data.conversations import parse_row
from ..data.roles import DROPPED_EXAMPLES, Role, load_system_prompts, role_warnings, split_role
from ..data.rows import Rows, name_columns, read_rows
from ..data.tokenization import (
    control_token_rows,
    cut_rows,
    encode_probe,
    encode_role,
    foreign_marks,
    untrainable_remedy,
)
from ..errors import BadInput
from ..evaluation.scorers import ambiguity_warnings, lossy_answers
from ..evaluation.scoring import ProbeSet
from ..models.loading import load_model_config, load_recipe_tokenizer, silence_libraries
from ..models.start_model import check_vocabulary
from ..recipes.hyperparameters import resolve_recipe
from ..recipes.recipe import ROLES, Recipe, override, suggest_name
from ..sources.columns import TASK_FIELDS, name_a_task
from ..sources.origins import Origin, describe_source, open_sources, propose_source
from .prepare import measure_facts
from .scripts import Script, count_scripts, sample_rows

QUANTILES = {"shortest": 0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1}
ALL_ROWS = 10**9  # rows of a probe: all of them, so that no row in both is missed


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
    control_tokens: int  # rows with text that looks like a control token, and is encoded as text
    foreign_marks: dict[str, int]  # rows by other models' control tokens and by placeholders in their text
    lossy_answers: int  # of a sample and of the probe, rows with an answer that its tokens do not give back
    scripts: dict[str, Script]
    costly: dict[str, int]  # characters of several tokens, with their number


@dataclass(frozen=True)
class DataReport:
    """What was counted in a role's data; `counts` is None where nothing could be counted in tokens."""

    role: str
    source: str
    model: str
    files: int
    passed_over: dict[str, str]  # files of folders and archives that are not read, with the reason
    notes: list[str]  # how texts are cut into rows, and what of documents is not read
    unreadable: list[str]  # files that cannot be read, each with the reason
    rows: int
    shapes: dict[str, int]
    types: dict[str, int]  # values of the rows' field `type`
    systems: int  # rows with a system message
    unused: dict[str, int]  # rows by field that nothing reads
    bad: int
    first_bad: list[str]
    bad_reasons: dict[str, int]
    proposal: str | None  # the source with its columns read as fields, where no row can be used without
    other_shape: int  # rows that would do as text for tasks, or the other way round
    duplicates: int
    first_duplicates: list[tuple[str, str]]  # file and line of a row and of the earlier equal one
    offered_probe: str | None  # a split of the source that may be given as its probe, where none is
    probe_rows: int | None  # None: no probe is given, so one is split off
    probe_bad: int
    probe_first_bad: list[str]
    shared_groups: int  # training rows whose question a given probe has too, with another answer
    fault: str  # what would stop a run beside bad rows
    findings: list[str]  # warnings that need no tokens
    max_length_given: bool
    counts: TokenCounts | None

    @property
    def untrainable(self) -> str:
        """Why nothing is left to train, and what to do; empty where something is, or no row can be used."""
        counts = self.counts
        if counts is None or counts.trained:
            return ""
        if not counts.train:
            return "every row is also in the probe; give another probe"
        why = ", ".join(f"{reason}: {dropped['rows']:,} rows" for reason, dropped in counts.dropped.items())
        return (f"no token within max_length {counts.max_length}" + f" ({why})" * bool(why) + "; "
                + untrainable_remedy(counts.dropped))

    @property
    def stops(self) -> list[str]:
        """What would stop a run on these data, and what to do about it."""
        bad, nothing = self.bad + self.probe_bad, "no usable row, so a run stops here"
        columns = (f"name its columns: {self.proposal}" if self.proposal else
                   "give rows of a shape that docs/data.md names")
        drop = ", or run with -p bad_rows drop" * (self.rows > 1)
        files = len(self.unreadable)
        cases = {f"{files:,} file{'s' * (files != 1)} cannot be read; correct or remove": self.unreadable,
                 f"{bad:,} row{'s' * (bad != 1)} would stop a run; correct them{drop}": bad,
                 f"{self.role}: {nothing}; {columns}": not self.rows,
                 f"{self.role}_probe: {nothing}; give another probe, or none": self.probe_rows == 0,
                 f"{self.role}: nothing to train, so a run stops here: {self.untrainable}": self.untrainable,
                 self.fault: self.fault}
        return [text for text, applies in cases.items() if applies]

    @property
    def warnings(self) -> list[str]:
        """What would not stop a run, but is worth a look before it, each with what to do."""
        cases = {f"{self.duplicates:,} rows repeat an earlier one, and train that often; remove them unless "
                 "that is meant": self.duplicates}
        if counts := self.counts:
            longer = counts.dropped.get("task longer than max_length", {"rows": 0})["rows"]
            badly = [name for name, script in counts.scripts.items() if script.badly_split]
            foreign = [f"{mark} ({rows:,})" for mark, rows in counts.foreign_marks.items()]
            unknown = sum(script.unknown for script in counts.scripts.values())
            cases |= {
                f"{counts.control_tokens:,} rows have text that looks like a control token and is trained as "
                "text; where it is a template's own, give these rows as messages without it":
                    counts.control_tokens,
                f"{', '.join(foreign[:5])}: rows by marks that are text to this model; take them out if they "
                "are control tokens of another one, or stand for a picture": foreign,
                f"{counts.lossy_answers:,} answers are other ones after this tokenizer, so no model can give "
                "them; write them with characters that it has": counts.lossy_answers,
                f"{longer:,} rows are longer than max_length {counts.max_length:,} and are dropped; "
                f"-p max_length {counts.lengths.max(initial=0)} trains all": longer and counts.trained,
                f"{', '.join(badly)}: more tokens than characters, so rows are long and dear to learn; take "
                "a model that was trained on it": badly,
                f"{unknown:,} characters are unknown to this tokenizer, so the model cannot read them; take "
                "another model": unknown}
        return self.findings + [text for text, applies in cases.items() if applies]

    @property
    def verdict(self) -> str:
        """Whether a run may start: "ready", "ready with warnings" or "will stop"."""
        return "will stop" if self.stops else "ready with warnings" if self.warnings else "ready"

    def to_dict(self) -> dict:
        """The report ready for JSON: instead of each row's length their quantiles."""
        values = dataclasses.asdict(self) | {
            name: getattr(self, name) for name in ("verdict", "warnings", "stops")}
        del values["findings"]
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
    of a recipe (`model`, `max_length`, `system_prompts`). Raises BadInput for names that lead nowhere; files
    and rows that cannot be used are counted and named.
    """
    silence_libraries()
    role = _role_of(source) if role is None else role
    if role not in ROLES:
        raise BadInput(f"no role {role!r}{suggest_name(role, ROLES)}; roles are {', '.join(ROLES)}",
                       field="role")
    recipe = override(Recipe(), bad_rows="drop", probe_rows=ALL_ROWS,
                      **fields, **{role: source, f"{role}_probe": probe})
    systems = load_system_prompts(recipe.system_prompts, role)
    rows, unreadable = _read_readable(source, role, systems)
    probe_rows, more = _read_readable(probe, f"{role}_probe", systems) if probe else (None, [])
    split, fault, counts = None, "", None
    if len(rows.table):
        tokenizer, config = load_recipe_tokenizer(recipe.model, recipe), load_model_config(recipe.model)
        try:
            split = split_role(source, rows, probe_rows, recipe, systems)
            counts = _count_tokens(recipe, role, split, tokenizer, config)
        except BadInput as error:
            fault = str(error)
    duplicates, first_duplicates = _duplicates(rows)
    about, probe_about = rows.about, probe_rows.about if probe_rows else {"bad": 0, "first_bad": []}
    return DataReport(
        role=role, source=source, model=recipe.model, files=len(rows.origins), unreadable=unreadable + more,
        notes=rows.notes,
        proposal=name_columns(rows, role.split("_")[1]),
        rows=len(rows.table), **{name: about[name] for name in (
            "passed_over", "shapes", "types", "systems", "unused", "bad", "first_bad", "bad_reasons")},
        other_shape=_count_other_shape(rows, role) if about["bad"] else 0,
        duplicates=duplicates, first_duplicates=first_duplicates,
        offered_probe=split.offered_probe if split else None,
        probe_rows=len(probe_rows.table) if probe_rows else None, probe_bad=probe_about["bad"],
        probe_first_bad=probe_about["first_bad"], shared_groups=split.shared_groups if split else 0,
        fault=fault, findings=_findings(role, split, recipe.scorer),
        max_length_given=recipe.max_length is not None, counts=counts)


def _read_readable(source: str, role: str, systems: dict) -> tuple[Rows, list[str]]:
    """The rows of the files that can be read, and what is wrong with the others."""
    origins, kind, faults = open_sources(source, role), role.split("_")[1], {}
    try:
        rows = read_rows(origins, kind, systems)
    except BadInput:
        faults = {origin.name: fault for origin in origins if (fault := _find_fault(origin))}
        rows = read_rows([origin for origin in origins if origin.name not in faults], kind, systems)
    rows.about |= describe_source(source, role)
    return rows, list(faults.values())


def _find_fault(origin: Origin) -> str:
    """Why a file as a whole cannot be read; empty where it can."""
    try:
        for _ in origin.records():
            pass
    except BadInput as error:
        return str(error)
    return ""


def _count_other_shape(rows: Rows, role: str) -> int:
    """The number of rows that could be used in a role of the other kind."""
    return len(read_rows(rows.origins, "text" if role.endswith("_tasks") else "tasks").table)


def _role_of(source: str) -> str:
    """The role in the file's name, or the domain's role that fits its first usable row, else its columns.

    A text beside columns that are called as a question and its answer is no text alone.
    """
    if (named := Path(source).stem.removesuffix("_probe")) in ROLES:
        return named
    for origin in open_sources(source, "data"):
        names = set()
        with contextlib.suppress(BadInput):
            for _, record in origin.records():
                names.update(record if isinstance(record, dict) else ())
                with contextlib.suppress(BadInput):
                    if not isinstance(record, BadInput):
                        row = parse_row(record, None, origin.shape)
                        is_text = row.shape == "text" and (origin.shape or not name_a_task(row.unused))
                        return "domain_text" if is_text else "domain_tasks"
            if names.isdisjoint(TASK_FIELDS) and not propose_source(origin, "tasks") and propose_source(
                    origin, "text"):
                return "domain_text"
    return "domain_tasks"


def _duplicates(rows: Rows) -> tuple[int, list[tuple[str, str]]]:
    """The number of rows that repeat an earlier one, and where the first of them are."""
    _, first, back = np.unique(rows.names[0], return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[back] != np.arange(len(back)))
    return len(repeated), [(rows.where(index), rows.where(first[back[index]]))
                           for index in repeated[:DROPPED_EXAMPLES]]


def _findings(name: str, role: Role | None, scorer: str) -> list[str]:
    return [*role_warnings(name, role), *ambiguity_warnings(name, role.probe, scorer)] if role else []


def _count_tokens(recipe: Recipe, name: str, role: Role, tokenizer: PreTrainedTokenizerBase,
                  config) -> TokenCounts:
    """Tokens of the training rows, cut and dropped as a run would."""
    tokens = encode_role(tokenizer, role)
    facts = measure_facts(config, recipe.model, tokenizer, {name: role}, {name: tokens})
    check_vocabulary(tokenizer, {name: role}, {name: tokens}, facts.vocabulary)
    max_length = resolve_recipe(recipe, facts)[0].max_length
    is_text = name.endswith("_text")
    pieces, reasons = cut_rows(tokens, max_length, is_text)
    for reason, rows in reasons.items():
        role.drop(reason, role.chosen[rows])
    encode_probe(tokenizer, role.probe, max_length)  # raises where a row of it cannot be shown
    ProbeSet({name: role.probe}, tokenizer, max_length, 0, False, recipe.scorer).check()  # or scored
    scripts, costly = count_scripts(tokenizer, role)
    return TokenCounts(
        train=len(role.train), probe=len(role.probe), template=describe_template(tokenizer, role.rows.uses),
        # rows that cannot be used are reported by themselves
        dropped={reason: rows for reason, rows in role.dropped.items() if reason != "cannot be used"},
        max_length=max_length, lengths=tokens.lengths, tokens=int(tokens.lengths.sum()),
        trained=int(pieces.trained.sum()), scripts=scripts, costly=costly,
        control_tokens=control_token_rows(tokenizer, role.train),
        foreign_marks=foreign_marks(tokenizer, role.train),
        lossy_answers=0 if is_text else lossy_answers(tokenizer, [*sample_rows(role), *role.probe]))
