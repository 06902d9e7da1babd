"""How a tokenizer splits the scripts of a role's rows: tokens per character, unknown characters."""

import itertools
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data.roles import Role

SAMPLED_ROWS = 2000  # rows, evenly spread, whose characters are counted; and different characters
COSTLY_CHARACTERS = 10
BADLY_SPLIT = 1.0  # tokens per character above which a script counts as badly split
NO_SCRIPTS = ("digits", "signs", "control")  # what is counted beside scripts


@dataclass(frozen=True)
class Script:
    """How the tokenizer splits a script (or digits, signs, control characters) in a sample of rows."""

    name: str
    characters: int
    tokens: int
    unknown: int

    @property
    def badly_split(self) -> bool:
        """Whether it takes more tokens than it has characters."""
        return self.name not in NO_SCRIPTS and self.tokens > BADLY_SPLIT * self.characters


def sample_rows(role: Role) -> Iterator[dict]:
    """At most SAMPLED_ROWS of the training rows, evenly spread."""
    size = len(role.train)
    for index in np.linspace(0, size - 1, min(SAMPLED_ROWS, size)).astype(int):
        yield role.train[int(index)]


def count_scripts(tokenizer: PreTrainedTokenizerBase,
                  role: Role) -> tuple[dict[str, Script], dict[str, int]]:
    """The scripts of a sample of rows by falling number of characters; characters of several tokens."""
    runs, letters = defaultdict(list), Counter()
    for row in sample_rows(role):
        text = _row_text(row)
        letters.update(letter for letter in text if not letter.isspace())
        for script, run in script_runs(text):
            runs[script].append(run)

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    scripts = {}
    for script, texts in runs.items():
        ids = list(itertools.chain.from_iterable(encode(texts)))
        scripts[script] = Script(script, sum(map(len, texts)), len(ids), ids.count(tokenizer.unk_token_id))
    common = [letter for letter, _ in letters.most_common(SAMPLED_ROWS)]
    sizes = sorted(zip(common, map(len, encode(common)), strict=True), key=lambda pair: -pair[1])
    return (dict(sorted(scripts.items(), key=lambda entry: -entry[1].characters)),
            {letter: size for letter, size in sizes[:COSTLY_CHARACTERS] if size > 1})


def _row_text(row: dict) -> str:
    """All that is said in a row, thoughts too."""
    return row["text"] if "text" in row else "\n".join(
        turn[name] for turn in row["messages"] for name in ("reasoning_content", "content") if turn.get(name))


def script_runs(text: str) -> Iterator[tuple[str, str]]:
    """The text in runs of one script; white space goes with the run before it."""
    _, *scripts = itertools.accumulate(
        text, lambda before, letter: before if letter.isspace() else _script_of(letter), initial="")
    for script, run in itertools.groupby(zip(scripts, text, strict=True), lambda pair: pair[0]):
        if script:
            yield script, "".join(letter for _, letter in run)


def _script_of(letter: str) -> str:
    """The script of a letter by its Unicode name, or what else a character is."""
    if letter.isalpha():
        return unicodedata.name(letter, "unnamed letters").split()[0].replace("CJK", "Chinese").capitalize()
    return "digits" if letter.isdigit() else "signs" if letter.isprintable() else "control"
