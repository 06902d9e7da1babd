"""Questions with answers to choose from: the choices, and in which form a file's answers name them.

Answers are letters, the choices' own texts, or numbers from 0 or from 1. Which it is is decided over a whole
file, since no row says it: a 2 may be the second answer, the third, or a text. Rows of another form cannot be
used. An answer in more words, which names a choice, is trained as it is.
"""

import contextlib
import itertools
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator

from ..errors import BadInput
from .fields import CHOICE_WORDS, EMPTY, OPTIONS, Record, check_text, plain_names, speaker_of
from .tool_calls import parse_calls, parse_list

# names of columns with a choice each: `a`, `option_a`, `choice 1`, `opa`
COLUMNS = [[f"{start}{label}" for label in labels] for labels in (string.ascii_lowercase, "123456789")
           for start in ("", *map("".join, itertools.product(CHOICE_WORDS, ("", "_", " "))))]
SECOND = frozenset(names[1] for names in COLUMNS)
FORMS = ("letter", "text", "number from 0", "number from 1")  # of several the first is taken
UNCLEAR = "number"  # which may count from 0 or from 1


def read_choices(record: Record) -> dict[str, str]:
    """The answers that a question lets one choose from, by their letters; empty where it does not."""
    name, value = record.first(OPTIONS)
    if not name:
        return _read_columns(record)
    if isinstance(value, str):
        value = parse_list(name, value, "answers")
    if isinstance(value, dict) and all(isinstance(value.get(key), list) for key in ("label", "text")):
        value = dict(zip(map(str, value["label"]), value["text"], strict=False))
    if isinstance(value, list) and all(isinstance(one, dict) and {"label", "text"} <= one.keys()
                                       for one in value):
        value = {str(one["label"]): one["text"] for one in value}
    if isinstance(value, list):
        value = dict(zip(string.ascii_uppercase, value, strict=False))
    if not isinstance(value, dict):
        raise BadInput(f"field {name!r} must be a list of answers, not {value!r:.40}", field=name)
    return {letter: check_text(name, text) for letter, text in value.items()}


def _read_columns(record: Record) -> dict[str, str]:
    if SECOND.isdisjoint(record):  # most rows: a million take 1 s less so
        return {}
    for names in COLUMNS:
        if names[1] in record and names[0] in record:
            found = itertools.takewhile(lambda name: record.get(name) not in (None, *EMPTY), names)
            choices = {name[-1].upper(): check_text(name, record[name]) for name in found}
            if len(choices) > 1:
                return choices
    return {}


def first_answer(field: str, value):
    """Of several answers the first, as text; of several calls, which are one answer, a message with them."""
    if field == "answers" and isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        return [{"role": "assistant", "tool_calls": parse_calls(field, value)}]
    if isinstance(value, dict) or (isinstance(value, list) and value and speaker_of(value[0]) is None):
        while isinstance(value, (dict, list)):
            if not value:
                raise BadInput(f"field {field!r} has no answer", field=field)
            value = value[0] if isinstance(value, list) else value.get("text", value.get("value"))
    return value


def read_choice(field: str, value, choices: dict[str, str], form: str | None):
    """The answer, a number as the letter that it means; `form` is that of its file, None for this row's own.

    Raises BadInput for an answer that names none of the choices, or names it in another form.
    """
    forms = _forms_of(choices, value)
    form = form or next((one for one in FORMS if one in forms), "")
    if form in forms:
        if form == "text":
            return value
        number = _number_of(value)
        if form != "letter":
            return list(choices)[number - int(form[-1])]
        return value if isinstance(value, str) else str(number)
    if isinstance(value, str) and not forms and _names_one(choices, value):
        return value
    if form == UNCLEAR and forms:
        raise BadInput(f"field {field!r} is a number, and the file's others do not show whether the first "
                       "choice is 0 or 1; write letters", field=field)
    form = f"as a {form}, as most answers of its file do" if forms else f"{', '.join(choices)} or its text"
    raise BadInput(f"field {field!r} must name one of the choices {'' if forms else 'by '}{form}, "
                   f"not {value!r:.40}", field=field)


def find_form(records: Callable[[], Iterator[tuple]], names: tuple[str, ...]) -> str | None:
    """The form of a file's answers, which are in the first of these fields; None where none has choices.

    Of numbers a 0, or one as high as there are choices, says from where they count.
    """
    counts = Counter()
    for _, fields in records():
        if isinstance(fields, dict):
            record = Record(*plain_names(fields))
            with contextlib.suppress(BadInput):  # of a row that will be refused where it is read
                counts.update(_count_forms(read_choices(record), first_answer(*record.first(names))))
    if not counts:
        return None
    form = max(("letter", "text", UNCLEAR), key=counts.__getitem__)
    if form == UNCLEAR and bool(counts["lowest"]) != bool(counts["highest"]):
        return FORMS[2] if counts["lowest"] else FORMS[3]
    return form


def _count_forms(choices: dict[str, str], value) -> set[str]:
    forms = _forms_of(choices, value) if choices else set()
    numbers = forms & set(FORMS[2:])
    if len(numbers) == 1:
        forms.add("lowest" if FORMS[2] in forms else "highest")
    return forms | ({UNCLEAR} if numbers else set())


def _forms_of(choices: dict[str, str], value) -> set[str]:
    """In which forms an answer names one of the choices; none where it names none."""
    number, forms = _number_of(value), set()
    if number is not None:
        forms = {form for first, form in enumerate(FORMS[2:]) if 0 <= number - first < len(choices)}
    elif not isinstance(value, str):
        return forms
    text = value.strip() if isinstance(value, str) else str(number)
    letters = {letter.casefold() for letter in choices}
    stated = re.match(r"[(\[]?(\w+)(?:[)\].:]+(?:\s|$)|$)", text)
    several = re.findall(r"\w", text) if text.isupper() else ()  # AC, or A, C
    if stated and stated[1].casefold() in letters or (
            1 < len(several) == len(set(several)) and set(map(str.casefold, several)) <= letters):
        forms.add("letter")
    if isinstance(value, str) and text.casefold() in {one.strip().casefold() for one in choices.values()}:
        forms.add("text")
    return forms


def _number_of(value) -> int | None:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*\d{1,2}\s*", value) else None
    whole = type(value) is int or type(value) is float and value.is_integer()
    return int(value) if whole else None


def _names_one(choices: dict[str, str], text: str) -> bool:
    """Whether an answer in more words has a choice's text, or its letter where that is no word."""
    letters = "|".join(map(re.escape, choices))
    texts = "|".join(re.escape(one.strip()) for one in choices.values())
    return bool(re.search(rf"(?<!\w)(?i:{texts})(?!\w)", text) or re.search(
        rf"\b(?:{letters})\b(?!\s+\w)|(?i:answer|option|choice|is)\W+(?:{letters})\b", text))
