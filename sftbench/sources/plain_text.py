"""Plain text cut into rows: at blank lines, else at lines, else after sentences, never in a word."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

PIECE_CHARACTERS = 2000  # of a row, about
# A text that is all of a source, and gives no two such pieces, is cut finer: a probe is to be split off.
SHORT_TEXT, FEWEST_PIECES, SHORTEST_PIECE = 2 * PIECE_CHARACTERS, 8, 80
PARAGRAPH, SENTENCE_LINE, LINE, SENTENCE, WORD = 4, 3, 2, 1, 0  # where it may be cut, from best to worst
CUTS = {PARAGRAPH: "blank lines", LINE: "lines", SENTENCE: "sentences", WORD: "words"}
CLOSING = r"""["'”’»)\]」』）】》]*"""
# Full stops of scripts with spaces end a sentence before a space only; those of others, everywhere.
WIDE_STOPS = "。！？｡؟۔।॥།။።։"
SENTENCES = re.compile(rf"[.!?…]{CLOSING}(\s+)|[{WIDE_STOPS}]+{CLOSING}(\s*)")
WORDS = re.compile(r"(\s+)|(?<=[、，；：])()")
SENTENCE_END = re.compile(rf"[.!?…:{WIDE_STOPS}]{CLOSING}\s*$")


def choose_piece(characters: int) -> int:
    """The length of a piece of a text of so many characters that is all of a source."""
    return max(SHORTEST_PIECE, characters // FEWEST_PIECES) if characters < SHORT_TEXT else PIECE_CHARACTERS


def cut_text(lines: Iterable[tuple[int, str]], limit: int) -> Iterator[tuple[int, str, int | None]]:
    """Pieces of numbered lines: where each begins, its text, and what it was cut at (None at the end).

    A piece has at most `limit` characters, unless one word is longer. Lines of white space count as blank; of
    the text nothing but white space between pieces is left out.
    """
    piece, size = [], 0
    for unit in _units(lines, limit):
        piece.append(unit)
        size += len(unit[1]) + len(unit[2])
        while size - len(piece[0][1]) > limit and len(piece) > 1:
            end = _best_end(piece, limit)
            yield piece[0][0], _join(piece[:end]), piece[end][3]
            piece = piece[end:]
            size = sum(len(glue) + len(text) for _, glue, text, _ in piece)
    if piece:
        yield piece[0][0], _join(piece), None


def describe_cuts(pieces: Iterable[tuple[int, str, int | None]]) -> str:
    """How text was cut, as `cut at blank lines (310), lines (2)`; empty where it is one piece."""
    counts = Counter(LINE if cut == SENTENCE_LINE else cut for _, _, cut in pieces if cut is not None)
    named = [f"{CUTS[cut]} ({counts[cut]})" for cut in sorted(counts, reverse=True)]
    return f"cut at {', '.join(named)}" if named else ""


def _join(piece: list[tuple]) -> str:
    return piece[0][2] + "".join(glue + text for _, glue, text, _ in piece[1:])


def _best_end(piece: list[tuple], limit: int) -> int:
    """Where to cut: at the last blank line, else at the best end in the second half, else at the last end."""
    ends = range(1, len(piece))
    if blank := [end for end in ends if piece[end][3] == PARAGRAPH]:
        return blank[-1]
    size, late = len(piece[0][2]), []
    for end in ends:
        if size >= limit / 2:
            late.append(end)
        size += len(piece[end][1]) + len(piece[end][2])
    return max(late or ends, key=lambda end: (piece[end][3] if late else 0, end))


def _units(lines: Iterable[tuple[int, str]], limit: int) -> Iterator[tuple[int, str, str, int]]:
    """What is never cut: number of the line, white space before it, text, and how well it is cut there."""
    blank, before = True, ""
    for number, line in lines:
        if not line.strip():
            blank = True
            continue
        glue, rank = ("\n\n", PARAGRAPH) if blank else ("\n", LINE)
        if rank == LINE and SENTENCE_END.search(before):
            rank = SENTENCE_LINE
        parts = [("", line, None)] if len(line) <= limit else _cut_line(line, limit)
        for inner, text, inner_rank in parts:
            yield number, *((glue, text, rank) if inner_rank is None else (inner, text, inner_rank))
        blank, before = False, line[-100:]


def _cut_line(line: str, limit: int) -> Iterator[tuple[str, str, int | None]]:
    """The sentences of a line, and the words of one that is too long; the first has the rank of the line."""
    rank = None
    for glue, sentence in _split(line, SENTENCES):
        for inner, word in _split(sentence, WORDS) if len(sentence) > limit else [("", sentence)]:
            yield glue or inner, word, rank
            glue, rank = "", WORD
        rank = SENTENCE


def _split(text: str, ends: re.Pattern) -> Iterator[tuple[str, str]]:
    """The text cut at these ends, each part with the white space before it."""
    start, glue = 0, ""
    for match in ends.finditer(text):
        first, last = match.span(match.lastindex)
        if first > start and last < len(text):
            yield glue, text[start:first]
            start, glue = last, text[first:last]
    if start < len(text):
        yield glue, text[start:]
