"""All probes of a run on one state of its model: answered once, as loaded from disk, and stored.

A state answers as a user would load it, not as training left it in memory. What is stored are its answers and
losses row by row; scores follow from them.
"""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..data.roles import load_system_prompts
from ..data.rows import digest_rows, read_source
from ..data.tokenization import encode_prompt, tokenizer_fingerprint
from ..errors import BadInput
from ..models.architecture import measure_architecture
from ..models.checkpoint import ModelState, check_start_revision, state_of
from ..models.loading import load_model_config, load_recipe_tokenizer, release_memory, silence_libraries
from ..recipes.recipe import override, recipe_from_dict
from ..runs.answers import AnsweredRow, read_answers
from ..runs.folder import read_result, write_json
from ..runs.intervals import change_intervals, mean_scores, score_intervals
from ..runs.stage_store import hash_key
from .probes import RowAnswer, answer_probe
from .rating import rate_answers
from .reading import wanted_ids
from .scorers import ambiguity_warnings, check_wanted, lossy_answers, score_answer, wanted_answer
from .yardstick import answer_yardstick, rate_yardstick, yardstick_digest, yardstick_scores

ANSWERS_FORMAT = 1  # of the stored answers: with another number they are computed again
MAX_EXAMPLES = 8  # in a prompt; each further one adds little (arXiv:2005.14165, figure 1.2)
PROMPT_TOKENS = 2**16  # of all such prompts of a probe: half a minute for a model of 135M on two cores


@dataclass(frozen=True)
class ProbeSet:
    """The held-out rows of a run by role, and how they are scored."""

    rows: dict[str, list[dict]]
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    max_new_tokens: int
    yardstick: bool
    scorer: str  # of rows that have none of their own

    @property
    def tasks(self) -> dict[str, list[dict]]:
        """The rows of task probes by role, each with its scorer."""
        return {role: [{"scorer": self.scorer, **row} for row in rows]
                for role, rows in self.rows.items() if rows and "messages" in rows[0]}

    @property
    def scorers(self) -> dict[str, dict[str, int]]:
        """The number of rows that each scorer scores, by role."""
        return {role: dict(Counter(row["scorer"] for row in rows)) for role, rows in self.tasks.items()}

    def check(self) -> None:
        """Raise BadInput, naming the role, for a wanted answer that its scorer cannot use."""
        for role, rows in self.tasks.items():
            for row in rows:
                try:
                    check_wanted(wanted_answer(self.tokenizer, row), row["scorer"])
                except BadInput as error:
                    raise BadInput(f"{role}, probe: {error}", field=error.field, where=role) from None

    def warnings(self, split: Collection[str]) -> list[str]:
        """What no answer can meet, and what trains unmeant in roles whose probe is `split` off."""
        warnings = []
        for role, rows in self.tasks.items():
            warnings += ambiguity_warnings(role, rows, self.scorer)
            exact = [{"messages": row["messages"][-1:]} for row in rows if row["scorer"] == "exact"]
            if lost := lossy_answers(self.tokenizer, exact):
                warnings.append(f"{role}: {lost:,} of {len(rows):,} wanted answers of the probe have "
                                "characters that the tokenizer changes or lacks, so no answer can equal "
                                "them; correct them, or take another model or scorer")
            if role in split and any(row["scorer"] == "regex" for row in rows):
                warnings.append(f"{role}: rows with the scorer regex have patterns as answers, and these "
                                f"train too; give such rows as {role}_probe alone")
        return warnings

    def answers_paths(self, state: ModelState) -> dict[str, Path]:
        """Where each role's answers by a state are stored, so that another probe leaves the others' alone.

        A scorer is no part of their name: another one scores the same answers.
        """
        shared = {"format": ANSWERS_FORMAT, "state": state.key,
                  "tokenizer": tokenizer_fingerprint(self.tokenizer)}
        bare = {role: [{name: value for name, value in row.items() if name != "scorer"} for row in rows]
                for role, rows in self.rows.items()}
        keys = {role: hash_key(**shared, max_length=self.max_length, max_new_tokens=self.max_new_tokens,
                               rows=digest_rows(rows)) for role, rows in bare.items()}
        if self.yardstick:
            keys["yardstick"] = hash_key(**shared, rows=yardstick_digest())
        return {role: state.store / "probes" / f"{key}.json" for role, key in keys.items()}

    def unanswered(self, state: ModelState) -> list[str]:
        """The roles whose answers by a state are not in the store yet."""
        return [role for role, path in self.answers_paths(state).items() if not path.exists()]

    def answer(self, state: ModelState) -> dict[str, list[AnsweredRow]]:
        """Every row by role with what the state makes of it, from the store or computed now, and scored."""
        paths = self.answers_paths(state)
        if unanswered := self.unanswered(state):
            model = state.load()
            for role in unanswered:
                paths[role].parent.mkdir(parents=True, exist_ok=True)
                write_json(paths[role], {"rows": self._answer_role(model, role)})
            del model
            release_memory()
        return {role: self._rate_role(role, [
            RowAnswer(*values) for values in json.loads(path.read_text(encoding="utf-8"))["rows"]])
            for role, path in paths.items()}

    def _answer_role(self, model, role: str) -> list[RowAnswer]:
        if role == "yardstick":
            return answer_yardstick(model, self.tokenizer)
        return answer_probe(model, self.tokenizer, self.rows[role], self.max_length, self.max_new_tokens)

    def _rate_role(self, role: str, answers: list[RowAnswer]) -> list[AnsweredRow]:
        if role == "yardstick":
            return rate_yardstick(answers)
        return rate_answers(self.tokenizer, role, self.tasks.get(role, self.rows[role]), answers)


def prompt_alone(probes: ProbeSet, role: str, train: Iterable[dict], room: int,
                 most: int | None = None) -> tuple[ProbeSet, int] | None:
    """A task role's probe with examples in its prompts, and their number: what the start model can without
    training, only by being shown.

    The examples are the first of the `train` rows that are plain questions with answers. They stand as turns
    before each question, which keeps its own system message. As many are taken as fit into the `room`, in
    tokens, beside the longest question and its answer, at most `most` (None: MAX_EXAMPLES), and so many that
    all prompts together stay within PROMPT_TOKENS, which limits the time. None where not one fits.
    """
    most = MAX_EXAMPLES if most is None else most
    rows, examples = probes.tasks.get(role), list(itertools.islice(filter(_is_plain, train), most))
    lengths = [len(encode_prompt(probes.tokenizer, row)) for row in rows or ()]
    for count in range(len(examples) if rows else 0, 0, -1):
        shown = [_show_examples(row, examples[:count]) for row in rows]
        try:
            more = len(encode_prompt(probes.tokenizer, shown[0])) - lengths[0]
        except BadInput:  # a template that shows one question alone
            return None
        if (max(lengths) + more + probes.max_new_tokens <= room
                and sum(lengths) + more * len(rows) <= PROMPT_TOKENS):
            return replace(probes, rows={role: shown}, max_length=room, yardstick=False), count
    return None


def _is_plain(row: dict) -> bool:
    """Whether a row is one question in words with an answer in words, which is no pattern."""
    spoken = [message for message in row["messages"] if message["role"] != "system"]
    return ([message["role"] for message in spoken] == ["user", "assistant"] and not row.get("tools")
            and not spoken[1].get("tool_calls") and row.get("scorer") != "regex")


def _show_examples(row: dict, examples: list[dict]) -> dict:
    """The row with examples between its system message and its question; only its last answer is scored."""
    system = [message for message in row["messages"][:1] if message["role"] == "system"]
    turns = [message | {"train": False} if message["role"] == "assistant" else message
             for example in examples for message in example["messages"] if message["role"] != "system"]
    question = [message | {"train": False} if message["role"] == "assistant" else message
                for message in row["messages"][len(system):-1]]
    return row | {"messages": [*system, *turns, *question, row["messages"][-1]]}


def interval_figures(rows: dict[str, list[AnsweredRow]],
                     before: dict[str, list[AnsweredRow]] | None = None) -> dict[str, dict]:
    """By role the 95 % `intervals` of a state's figures, and `change_intervals` from the state `before`."""
    figures = {"intervals": {role: score_intervals(own) for role, own in rows.items()}}
    if before is not None:
        figures["change_intervals"] = {role: change_intervals(before[role], own)
                                       for role, own in rows.items() if role in before}
    return {name: {role: spans for role, spans in roles.items() if spans} for name, roles in figures.items()}


def sum_scores(rows: dict[str, list[AnsweredRow]]) -> dict[str, dict[str, float]]:
    """The figures of a state by role, from its rows; loss in nats per token."""
    return {role: yardstick_scores(own) if role == "yardstick" else mean_scores(own)
            for role, own in rows.items()}


def score_run(run: Path | str, probe: str | None = None, role: str = "domain_tasks",
              scorer: str | None = None) -> dict:
    """The start and every stage of a finished run scored anew, without training.

    With `scorer` alone the answers of the run's own task probes are scored by it, and no model is loaded.
    With `probe`, a file (or what else is a role's source) of this `role`, the stored models answer its rows,
    by this scorer or the recipe's where a row has none of its own. Returns `states`: by name `probes`,
    `intervals` and `change_intervals` as `result.json` has them; and `scorers`, the rows by role and scorer.
    Raises BadInput where neither is given, and for what a run would refuse.
    """
    if probe is None and scorer is None:
        raise BadInput("nothing to score anew: give a probe, a scorer or both", field="probe")
    states = _answer_anew(run, probe, role, scorer) if probe else _rate_anew(run, scorer)
    first = next(iter(states.values()))
    scorers = {role: dict(Counter(row.scorer for row in rows)) for role, rows in first.items()
               if rows[0].scorer}
    return {"states": {name: {"probes": sum_scores(rows),
                              **interval_figures(rows, None if name == "start" else first)}
                       for name, rows in states.items()}, "scorers": scorers}


def _rate_anew(run: Path | str, scorer: str) -> dict[str, dict[str, list[AnsweredRow]]]:
    """The rows of a run's task probes by state and role, each scored by `scorer` whatever its own is."""
    answers = read_answers(run)
    states = {name: defaultdict(list) for name in answers}
    for name, rows in answers.items():
        for row in [row for row in rows if row.scorer]:
            try:
                score = score_answer(row.spoken, row.wanted, scorer)
            except BadInput as error:
                raise BadInput(f"{row.role}, row {row.row}: {error}", field="scorer",
                               where=row.role) from None
            states[name][row.role].append(replace(row, scorer=scorer, score=score))
    if not states["start"]:
        raise BadInput(f"{run}: it has no probe with questions; give one by --probe", field="scorer",
                       where=str(run))
    return states


def _answer_anew(run: Path | str, probe: str, role: str,
                 scorer: str | None) -> dict[str, dict[str, list[AnsweredRow]]]:
    """The rows of another probe by state and role, answered by the run's stored models."""
    silence_libraries()
    result = read_result(run)
    check_start_revision(run)
    recipe = recipe_from_dict(result["recipe"])
    recipe = override(recipe, scorer=scorer or recipe.scorer)
    rows = list(read_source(probe, f"{role}_probe", recipe.bad_rows,
                            load_system_prompts(recipe.system_prompts, role)).table)
    start = result["start"]["model"]
    tokenizer = load_recipe_tokenizer(start, recipe)
    longest = max((len(wanted_ids(tokenizer, row)) for row in rows if "messages" in row), default=0)
    probes = ProbeSet({role: rows}, tokenizer, recipe.max_length, max(recipe.max_new_tokens, longest), False,
                      recipe.scorer)
    probes.check()
    _check_room(probes, measure_architecture(load_model_config(start, recipe.model_revision))["positions"])
    states = {"start": None} | {stage["name"]: number for number, stage in enumerate(result["stages"])}
    return {name: probes.answer(state_of(run, number)) for name, number in states.items()}


def _check_room(probes: ProbeSet, positions: int | None) -> None:
    """Refuse questions that, with their answers, are longer than the model's table of positions."""
    longest = max((len(encode_prompt(probes.tokenizer, row))
                   for rows in probes.tasks.values() for row in rows), default=0)
    if positions and longest + probes.max_new_tokens > positions:
        raise BadInput(f"the longest question of the probe has {longest} tokens, its answers up to "
                       f"{probes.max_new_tokens}, and the model a table of {positions} positions; take out "
                       "the longest rows", field="probe")
