"""What an answer states: its last number, or the letter of the option that it chooses."""

import unicodedata
from collections.abc import Iterator
from fractions import Fraction

import regex

_SIGNS = str.maketrans("٫٬，．−–－＋", ".,,.---+")
_POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_RAISED = regex.compile(r"(?<=10)[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_LATEX_FRACTION = regex.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_BOXED = regex.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = regex.compile(r"""
    (?<!\d|\d[.,]) (?<sign>(?<![\p{L}\d)\]])[-+])? (?:\p{Sc}\s?)?
    (?:10\^\{?(?<power>[-+]?\d{1,3})\}?                                  # 10^6
     |(?:(?<points>\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,})       # 1.234,5 and 1.234.567
       |(?<commas>\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)(?:\.\d+)?)            # 1,234.5 and 12,34,567
       |(?<spaces>\d{1,3}(?:['’\u00a0\u2009\u202f]\d{3})+(?:[.,]\d+)?)   # 1'234.5
       |(?<comma>\d+,(?:\d{1,2}|\d{4,})(?!\d|,\d))                       # 3,5
       |(?<plain>\d+(?:\.\d+)?|(?<!\.)\.\d+))
      (?:[eE](?<power>[-+]?\d{1,3})(?!\w)                                # 1e6
       |\s*(?:[x×*·]|\\times|\\cdot)\s*10\^\{?(?<power>[-+]?\d{1,3})\}?)?
      (?:(?<!/\s?[\d.,]+)\s?/\s?(?<below>\d+)(?!\d|/|\.\d))?             # 3/4, but no date
      (?<unit>[万萬亿億])?)""", regex.VERBOSE)
_HAN_DIGITS = {digit: value for value, digits in enumerate(("零〇", "一", "二两兩", *"三四五六七八九"))
               for digit in digits}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_HAN_NUMBER = regex.compile(f"[{''.join((*_HAN_DIGITS, *_HAN_UNITS))}]+")


def last_number(text: str) -> Fraction | None:
    r"""The last number of a text, or the one after `####` or in `\boxed{…}`; None without one.

    Digits are those of any script; `1,234.5`, `1'234`, `3,5`, `1e3`, `2×10^3`, `3/4` and `3万` are one number
    each. Chinese numerals count where there is no digit, numbers within a word (`CO2`) where there is no
    other. A percent sign changes nothing.
    """
    text = _LATEX_FRACTION.sub(r"\1/\2", text.translate(_SIGNS))
    text = _RAISED.sub(lambda match: "^" + match[0].translate(_POWERS), text)
    # the first one, since a base model may go on to a next task
    marked = next(_numbers(text.partition("####")[2]), None)
    if marked is not None:
        return marked
    boxes = _BOXED.findall(text)
    numbers = list(_numbers(boxes[-1] if boxes else "")) or list(_numbers(text))
    if numbers:
        return numbers[-1]
    numerals = _HAN_NUMBER.findall(text)
    return Fraction(_read_han(numerals[-1])) if numerals else None


def _numbers(text: str) -> Iterator[Fraction]:
    """The numbers written in digits, in order; those within a word only where there is no other."""
    found = list(_NUMBER.finditer(text))
    free = [match for match in found if not regex.search(r"[A-Za-z_]\Z", text[:match.start()])]
    for match in free or found:
        try:
            yield _read_number(match)
        except (ValueError, ZeroDivisionError):  # Python reads no number of more than 4,300 digits
            continue


def _read_number(match) -> Fraction:
    parts = match.groupdict()
    digits = parts["plain"] or "1"
    if parts["points"] or parts["comma"]:
        digits = (parts["points"] or parts["comma"]).replace(".", "").replace(",", ".")
    elif parts["commas"]:
        digits = parts["commas"].replace(",", "")
    elif parts["spaces"]:
        digits = regex.sub(r"[^\d.,]", "", parts["spaces"]).replace(",", ".")
    value = Fraction(digits) * Fraction(10) ** int(parts["power"] or 0)
    value *= Fraction(_HAN_UNITS.get(parts["unit"], 1), int(parts["below"] or 1))
    return -value if parts["sign"] == "-" else value


def _read_han(numeral: str) -> int:
    """A Chinese numeral, with units (三百二十五) or digit by digit (二〇二六)."""
    if not set(numeral) & set(_HAN_UNITS):
        return int("".join(str(_HAN_DIGITS[digit]) for digit in numeral))
    total = section = 0
    digit = None
    for character in numeral:
        unit = _HAN_UNITS.get(character)
        if unit is None:
            digit = _HAN_DIGITS[character]
        elif unit < 10**4:
            section, digit = section + (1 if digit is None else digit) * unit, None
        else:
            section, digit = section + (digit or 0), None
            total = (total + section) * unit if total < unit else total + section * unit
            section = 0
    return total + section + (digit or 0)


_MARKUP = regex.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\{([^{}]*)\}|[*`$]")
_DENIED = regex.compile(r"\b(?i:not|nor|isn't)\s+\(?[A-Z]\b\)?")
# A and I are words of their own, as most small letters are: these need more around them to be an option's
_LETTER = r"""(?:(?<letter>[B-HJ-Z])(?!['’]?[A-Za-z0-9]|-\w)
    |(?<letter>[AI])(?!['’]?[A-Za-z0-9]|-\w|\s+(?!(?:because|since|as|is|and|or)\b)[a-z])
    |(?<letter>[a-z])(?=\s*(?:[)\].,;:!?"”}」】》>、。]|['’]\W|\n|\Z)(?!\w\.)))"""
_ALONE = r"(?![)\].]?\s*(?:or|and|und|oder|[,/&])\s*\(?[A-Z]\b)"  # not one of several
_OPEN = r"""[\s("'“‘\[{「【《<]*"""
_SAYS = r"""(?:\b(?i:answers?|(?:correct|right|best)\s+(?:option|choice)|(?:option|choice)\s*(?:is|(?=:))
    |choose|chose|selects?|picks?|antwort|réponse|respuesta|resposta|risposta|ответ)\b|答案|正解|答え|정답|选)
    (?:\s*(?:\b(?i:is|was|be|must|should|would|option|choice|letter|the|correct|right|best|ist|est|es|é|è)\b
    |[是为為选選項项は는:=—-]))*"""
_CHOICES = [regex.compile(pattern, regex.VERBOSE) for pattern in (
    _SAYS + _OPEN + _LETTER + _ALONE,
    r"\A" + _OPEN + _LETTER + _ALONE + r"""(?=["'”’]?\s*(?:[)\].,;:>、。}」】》]|\n|\Z|[-–—]\s))""",
    r"(?<![A-Za-z0-9])(?<letter>[A-Z])[)\]]?\s*(?:(?:is|was)\s+(?:the\s+)?(?:correct|right|best|true|answer)|是?正确)",
    r"\b(?i:option|choice)\s+" + _OPEN + _LETTER,
    r"(?<![A-Za-z0-9'’])" + _LETTER + r"(?<=[A-Z])")]
_WANTED = regex.compile(r"[(\[]?(?<letter>[A-Za-z])" + _ALONE +
                        r"(?:[)\].:、。](?!\w\.)[)\]]?(?:\s*\S.*)?)?", regex.DOTALL)


def wanted_letter(text: str) -> str | None:
    """The letter of a wanted answer (`B`, `(b)`, `B. Paris`, `Answer: B`), as a capital; None for another."""
    text = _without_markup(text)
    match = _WANTED.fullmatch(text) or next(reversed(list(_CHOICES[0].finditer(text))), None)
    return match["letter"].upper() if match else None


def stated_letter(text: str) -> str | None:
    """The letter that an answer chooses, as a capital; None where it chooses none, or it is unclear which.

    The last one that is called the answer goes first, then one at the beginning (`B) Paris`), then one called
    right, an option, and a capital that stands alone, if all such are the same.
    """
    text = _DENIED.sub("", _without_markup(text))
    for pattern in _CHOICES:
        letters = [match["letter"].upper() for match in pattern.finditer(text)]
        if letters and (pattern in _CHOICES[:2] or len(set(letters)) == 1):
            return letters[-1]
    return None


def _without_markup(text: str) -> str:
    """The text without emphasis and boxes, full-width characters as plain ones."""
    return _MARKUP.sub(lambda match: match[1] or "", unicodedata.normalize("NFKC", text)).strip()
