"""Scorers: how right an answer is beside the wanted one, from 0 to 1, each a plain function of two texts.

All compare composed forms (NFC), in which é is one character however it was written; what differs in meaning,
as ² and 2, stays apart. What a model thinks before it speaks (<think>…</think>) is not scored.
"""

import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from fractions import Fraction

import regex  # knows scripts and a time limit, unlike `re`
from transformers import PreTrainedTokenizerBase

from ..errors import BadInput
from ..recipes.recipe import suggest_name
from .reading import read_answer, wanted_ids
from .stated import last_number, stated_letter, wanted_letter

REGEX_SECONDS = 1.0  # that a pattern may take on one answer
TOLERANCE = Fraction(1, 10**6)  # relative, of numbers that are not both integers

# Scripts that put no space between words: each character is a unit. Hangul and Tibetan part their words.
_UNSPACED = "".join(rf"\p{{scx={script}}}" for script in (
    "Han", "Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue",
    "Tai_Tham", "Tai_Viet", "Javanese", "Balinese"))
_LETTER = r"[\p{L}\p{N}\p{M}_]"
_UNIT = regex.compile(rf"(?V1)[{_LETTER}--[{_UNSPACED}]]+|[{_LETTER}&&[{_UNSPACED}]]\p{{M}}*")
_IN_WORD = regex.compile(rf"(?V1)[{_LETTER}--[{_UNSPACED}]]{{2}}")
_INVISIBLE = regex.compile(r"[\p{Cf}\u0640]")  # joiners, soft hyphens, marks of direction, the Arabic stretch
_THOUGHTS = regex.compile(
    r"\A(?:\s*<(think|thinking|thought|reasoning|seed:think)>.*?(?:</\1>|\Z)"
    r"|\s*\[THINK\].*?(?:\[/THINK\]|\Z))+"
    r"|\A.*</think>", regex.DOTALL)  # where a prompt opens the thoughts, an answer only closes them
_BLOCK = regex.compile(r"```(?:json)?\s*\n(.*?)```|<tool_call>(.*?)</tool_call>", regex.DOTALL)


def score_answer(answer: str, wanted: str, scorer: str) -> float:
    """How right an answer is by the scorer of this name, 0 to 1; raises BadInput as `check_wanted` does."""
    check_wanted(wanted, scorer)
    spoken = _spoken(wanted)
    if not spoken:  # nothing but thoughts is wanted
        return SCORER_FUNCTIONS[scorer](_composed(answer), _composed(wanted))
    return SCORER_FUNCTIONS[scorer](_spoken(answer), spoken)


def check_wanted(wanted: str, scorer: str) -> None:
    """Raise BadInput where there is no such scorer, or it can score no answer beside this wanted one."""
    if scorer not in SCORER_FUNCTIONS:
        raise BadInput(f"unknown scorer {scorer!r}{suggest_name(scorer, SCORER_FUNCTIONS)}; there is "
                       f"{', '.join(SCORER_FUNCTIONS)}", field="scorer")
    fault = _FAULTS[scorer](_spoken(wanted)) if scorer in _FAULTS else ""
    if fault:
        raise BadInput(f"scorer {scorer}: the wanted answer {wanted!r:.60} {fault}; correct it, or take "
                       "another scorer", field="scorer")


def wanted_answer(tokenizer: PreTrainedTokenizerBase, row: dict) -> str:
    """The answer that a row ends with, as a model gives it: a call of tools in the template's own form."""
    if not row["messages"][-1].get("tool_calls"):
        return row["messages"][-1]["content"]
    return read_answer(tokenizer, wanted_ids(tokenizer, row))


def ambiguity_warnings(role: str, rows: list[dict], scorer: str) -> list[str]:
    """What a probe cannot reach where a question stands with several answers, of which `exact` counts one.

    `scorer` is that of rows without one of their own.
    """
    answers = defaultdict(Counter)
    for row in rows:
        if "messages" in row and row.get("scorer", scorer) == "exact":
            *question, answer = row["messages"]
            answers[json.dumps(question, sort_keys=True)][answer["content"].strip()] += 1
    several = [counts for counts in answers.values() if len(counts) > 1]
    missed = sum(counts.total() - max(counts.values()) for counts in several)
    return [f"{role}: questions of the probe with several answers: {len(several):,}; the scorer exact counts "
            f"one of them, so at most {1 - missed / len(rows):.0%} can be reached; leave one answer each, or "
            "take another scorer"] if several else []


def lossy_answers(tokenizer: PreTrainedTokenizerBase, rows: list[dict]) -> int:
    """The number of rows with an answer that no model can give, as it does not survive its tokens.

    A tokenizer may change characters as it reads them, or not have them. White space and the way of composing
    characters do not count, nor do thoughts.
    """
    answers = [(number, text) for number, row in enumerate(rows) for message in row["messages"]
               if message["role"] == "assistant" and (text := _THOUGHTS.sub("", message["content"]))]
    if not answers:
        return 0
    numbers, texts = zip(*answers, strict=True)
    # what looks like a control token is text in training too
    ids = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    given = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return len({number for number, text, own in zip(numbers, given, texts, strict=True)
                if not exact_match(text, own)})


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _spoken(text: str) -> str:
    """The text in composed form, without the thoughts before it."""
    return _THOUGHTS.sub("", _composed(text)).strip()


def exact_match(answer: str, wanted: str) -> float:
    """1.0 if both are the same text, white space and the way of composing characters apart."""
    return float(_composed(answer).split() == _composed(wanted).split())


def token_f1(answer: str, wanted: str) -> float:
    """Harmonic mean of precision and recall over words, without case and punctuation (arXiv:1606.05250).

    A word has its combining marks; in scripts without spaces each character is a word. Compatibility forms
    (NFKC) count as what they stand for. Of texts without any word only equal ones score.
    """
    got, want = (Counter(_units(text)) for text in (answer, wanted))
    common = (got & want).total()
    if not common:
        return float(not got and not want and exact_match(answer, wanted))
    return 2 * common / (got.total() + want.total())


def _units(text: str) -> list[str]:
    return _UNIT.findall(_INVISIBLE.sub("", unicodedata.normalize("NFKC", text).casefold()))


def contains(answer: str, wanted: str) -> float:
    """1.0 if the wanted text stands in the answer, as complete words; case and kind of white space apart."""
    answer, wanted = (" ".join(_composed(text).casefold().split()) for text in (answer, wanted))
    start = answer.find(wanted)
    while start >= 0:
        end = start + len(wanted)
        borders = answer[max(start - 1, 0):start + 1], answer[end - 1:end + 1]
        if not any(map(_IN_WORD.fullmatch, borders)):
            return 1.0
        start = answer.find(wanted, start + 1)
    return 0.0


def same_choice(answer: str, wanted: str) -> float:
    """1.0 if the answer chooses the wanted letter: `B`, `(b)`, `B) Paris`, `The answer is **B**`."""
    return float(stated_letter(answer) == wanted_letter(wanted))


def same_number(answer: str, wanted: str) -> float:
    """1.0 if the last numbers of both are equal: integers exactly, others within TOLERANCE."""
    got, want = last_number(answer), last_number(wanted)
    if got is None or got.denominator == want.denominator == 1:
        return float(got == want)
    return float(abs(got - want) <= TOLERANCE * max(abs(got), abs(want)))


def same_json(answer: str, wanted: str) -> float:
    """1.0 if both are equal JSON values: white space, the order of keys and 1 or 1.0 apart.

    Words around a fenced block or a <tool_call> count only where the wanted answer has some.
    """
    try:
        around = _BLOCK.sub("", wanted).split() if _BLOCK.search(wanted) else []
        if around and around != _BLOCK.sub("", answer).split():
            return 0.0
        return float(_canonical_json(answer) == _canonical_json(wanted))
    except (ValueError, RecursionError):
        return 0.0


def _canonical_json(text: str) -> str:
    """The value as text with sorted keys; of fenced blocks and <tool_call>s the values, where it has some."""
    blocks = ["".join(groups) for groups in _BLOCK.findall(text)] or [text]
    values = [json.loads(block, parse_float=_plain_float, parse_constant=_no_json) for block in blocks]
    return _composed(json.dumps(values, sort_keys=True, ensure_ascii=False))


def _plain_float(text: str) -> int | float:
    return int(value) if (value := float(text)).is_integer() else value


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def matches_regex(answer: str, wanted: str) -> float:
    """1.0 if the wanted text, a pattern of the package `regex`, matches somewhere in the answer.

    A pattern that takes longer than REGEX_SECONDS on an answer does not match it.
    """
    try:
        return float(regex.search(wanted, answer, timeout=REGEX_SECONDS) is not None)
    except TimeoutError:
        return 0.0


def _json_fault(wanted: str) -> str:
    try:
        _canonical_json(wanted)
    except (ValueError, RecursionError) as error:
        return f"is no JSON ({error})"
    return ""


def _regex_fault(wanted: str) -> str:
    try:
        regex.compile(wanted)
    except regex.error as error:
        return f"is no pattern ({error})"
    return ""


SCORER_FUNCTIONS: dict[str, Callable[[str, str], float]] = {
    "exact": exact_match, "f1": token_f1, "contains": contains, "choice": same_choice, "number": same_number,
    "json": same_json, "regex": matches_regex}
# what is wrong with a wanted answer for a scorer, or an empty text
_FAULTS: dict[str, Callable[[str], str]] = {
    "choice": lambda wanted: "" if wanted_letter(wanted) else "is no letter",
    "number": lambda wanted: "has no number" if last_number(wanted) is None else "",
    "json": _json_fault, "regex": _regex_fault}
