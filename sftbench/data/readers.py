"""Files to records, each with its line or row, or with a BadInput in place of a record that cannot be read.

Everything but `.json` is read piece by piece. These readers are ours, as the builders of `datasets` (5.2.0,
measured) lose what an error has to say or what a row has:

- csv guesses types (007 becomes 7.0, an empty answer None), and stops at a row with too many fields,
- json names an offset in place of a line, and adds every field of any row to all rows, as None,
- text names no lines, and takes a line of spaces for text,
- parquet writes a copy of the file into the cache before the first row is read.
"""

import csv
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from ..errors import BadInput
from .conversations import SHAPES
from .sources import TEXT_SUFFIXES

PIECE_CHARACTERS = 2000  # characters: plain text is cut at blank lines into rows of about this length
READ_BATCH = 1000  # rows of a table in memory at a time


def bad_place(where: Path | str, why: str, field: str = "") -> BadInput:
    """Bad input at a file, folder or hub name."""
    return BadInput(f"{where}: {why}", field=field, where=str(where))


def _read_lines(path: Path) -> Iterator[tuple]:
    """Numbered lines without their ends, or BadInput at a byte that is no text."""
    number, offset = 0, 0
    with open(path, "rb") as file:
        for raw in file:
            skip = 3 if not offset and raw.startswith(b"\xef\xbb\xbf") else 0
            number += 1
            try:
                text = raw[skip:].decode()
            except UnicodeDecodeError as error:
                yield number, BadInput(f"byte {offset + skip + error.start} is not UTF-8; "
                                       "save the file as UTF-8")
            else:
                if "\0" in text:
                    yield number, BadInput(f"byte {offset + raw.index(0)} is NUL; is this a text file?")
                else:
                    parts = text.removesuffix("\n").removesuffix("\r").split("\r")
                    yield from enumerate(parts, number)
                    number += len(parts) - 1
            offset += len(raw)


def _sound_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The same for formats in which one bad byte spoils the whole file."""
    for number, line in _read_lines(path):
        if isinstance(line, BadInput):
            raise bad_place(f"{path}, line {number}", str(line))
        yield number, line


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object; of a key that appears twice `json` would take the last value without a word."""
    record = dict(pairs)
    if len(record) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise BadInput(f"the key {key!r} appears more than once in an object; keep one of them", field=key)
    return record


def _read_jsonl(path: Path) -> Iterator[tuple]:
    for number, line in _read_lines(path):
        if isinstance(line, BadInput):
            yield number, line
        elif line.strip():
            try:
                record = json.loads(line, object_pairs_hook=_unique_keys)
            except json.JSONDecodeError as error:
                record = BadInput(f"column {error.colno}: not JSON: {error.msg}")
            except RecursionError:
                record = BadInput("nested too deeply")
            except BadInput as error:
                record = error
            yield number, record


def _read_json(path: Path) -> Iterator[tuple]:
    """A list of rows, an object that has one, or JSON Lines.

    The first two are in memory as a whole, so that a fault is reported with line and column before a row is
    used; large data are JSON Lines.
    """
    lines = [line for _, line in _sound_lines(path)]
    filled = [line for line in lines if line.strip()]
    if len(filled) > 1 and filled[0].lstrip().startswith("{") and filled[0].rstrip().endswith("}"):
        yield from _read_jsonl(path)
        return
    text = "\n".join(lines)
    try:
        if text.lstrip().startswith("["):
            json.loads(text)
            yield from _list_rows(text)
            return
        data = json.loads(text, object_pairs_hook=_unique_keys) if filled else {}
        lists = [value for value in data.values() if isinstance(value, list)
                 and value and isinstance(value[0], dict)] if isinstance(data, dict) else []
        one = len(lists) == 1 and not set(data) & {field for shape in SHAPES.values() for field in shape}
        yield from enumerate(lists[0] if one else [data] if filled else [], 1)
    except json.JSONDecodeError as error:
        raise bad_place(f"{path}, line {error.lineno}",
                        f"column {error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise bad_place(path, "nested too deeply") from None
    except BadInput as error:
        raise bad_place(path, str(error), error.field) from None


def _list_rows(text: str) -> Iterator[tuple]:
    """The rows of a JSON list, each with the line at which it begins."""
    decoder, space = json.JSONDecoder(object_pairs_hook=_unique_keys), re.compile(r"[\s,]*")
    place, number, last = text.index("[") + 1, 1, 0
    while text[place := space.match(text, place).end()] != "]":
        number, last = number + text.count("\n", last, place), place
        try:
            record, place = decoder.raw_decode(text, place)
        except BadInput as error:
            record, (_, place) = error, json.JSONDecoder().raw_decode(text, place)
        yield number, record


def _read_csv(path: Path) -> Iterator[tuple]:
    csv.field_size_limit(sys.maxsize)
    lines = (line + "\n" for _, line in _sound_lines(path))
    reader = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    start = 2
    try:
        for record in reader:
            spare = record.pop(None, None)
            yield start, BadInput(f"{len(spare)} more field(s) than the header has") if spare else record
            start = reader.line_num + 1
    except csv.Error as error:
        raise bad_place(f"{path}, line {start}", f"this row is not CSV: {error}") from None


def _read_parquet(path: Path) -> Iterator[tuple]:
    try:
        with ParquetFile(path) as file:
            yield from enumerate(
                (row for batch in file.iter_batches(READ_BATCH) for row in batch.to_pylist()), 1)
    except (pa.ArrowException, OSError) as error:
        raise bad_place(path, f"not readable as Parquet: {error}") from None


def _read_text(path: Path) -> Iterator[tuple]:
    """Text cut at blank lines into pieces of about PIECE_CHARACTERS."""
    piece, start, size = [], 0, 0
    for number, paragraph in _paragraphs(path):
        if piece and size + len(paragraph) > PIECE_CHARACTERS:
            yield start, {"text": "\n\n".join(piece)}
            piece, size = [], 0
        start = start if piece else number
        size += len(paragraph) + 2 * bool(piece)
        piece.append(paragraph)
    if piece:
        yield start, {"text": "\n\n".join(piece)}


def _paragraphs(path: Path) -> Iterator[tuple[int, str]]:
    """Paragraphs, each with the line at which it begins; blank lines are between them."""
    for filled, group in itertools.groupby(_sound_lines(path), key=lambda line: line[1] != ""):
        numbers, lines = zip(*group, strict=True)
        paragraph = "\n".join(lines)
        if filled and paragraph.strip():
            yield numbers[0], paragraph


READERS = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    **dict.fromkeys(TEXT_SUFFIXES, _read_text),
}
