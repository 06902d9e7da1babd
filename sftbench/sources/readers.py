"""Files to records, each with its line or row, or with a BadInput in place of a record that cannot be read.

Everything but `.json` is read piece by piece. The builders of `datasets` (5.2.0) would lose what an error has
to say or what a row has, and take more memory: of 300,000 rows, streamed (these readers in brackets),

- csv 27 MB (0): no lines; a row with too many fields ends it or is skipped without a word; types are guessed
  (007 becomes 7) unless every column is named beforehand; text after a closed quote joins what is in it,
- json 433 MB (199): an offset for a line; all rows get the fields of any; of a doubled key the last one wins,
- text 140 MB (0): no lines; a line of spaces is text; a paragraph is a row, however short,
- parquet 141 MB (65), ten times slower: no columns that are maps; stars and brackets of a name are patterns.
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

from ..errors import BadInput, file_error
from .names import SHAPES, TEXT_SUFFIXES

PIECE_CHARACTERS = 2000  # characters: plain text is cut at blank lines into rows of about this length
READ_BATCH = 1000  # rows of a table in memory at a time
JSON_LINES = re.compile(r"\s*\{.*\}[^\S\n]*\n\s*\S")  # an object on the first line, and something below it


def load_json(text: str):
    """The value of JSON text; raises BadInput for a doubled key and deep nesting, else JSONDecodeError."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise BadInput("nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    record = dict(pairs)
    if len(record) < len(pairs):
        _refuse_doubled([key for key, _ in pairs])
    return record


def _refuse_doubled(names: list[str], where: Path | str = "") -> None:
    """Refuse names of which one is doubled; the libraries would take its last value without a word."""
    if len(set(names)) < len(names):
        name, _ = Counter(names).most_common(1)[0]
        why = f"the key {name!r} appears more than once; keep one of them"
        raise file_error(where, why, name) if where else BadInput(why, field=name)


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
            raise file_error(f"{path}, line {number}", str(line))
        yield number, line


def _read_jsonl(path: Path) -> Iterator[tuple]:
    for number, line in _read_lines(path):
        if isinstance(line, BadInput):
            yield number, line
        elif line.strip():
            try:
                yield number, load_json(line)
            except json.JSONDecodeError as error:
                yield number, BadInput(f"column {error.colno}: not JSON: {error.msg}")
            except BadInput as error:
                yield number, error


def _read_json(path: Path) -> Iterator[tuple]:
    """A list of rows, an object that has one, or JSON Lines.

    The first two are in memory as a whole, so that a fault is reported with line and column before a row is
    used; large data are JSON Lines.
    """
    text = "\n".join(line for _, line in _sound_lines(path))
    if JSON_LINES.match(text):
        yield from _read_jsonl(path)
    elif first := text.lstrip()[:1]:
        try:
            yield from (_list_rows if first == "[" else _object_rows)(text)
        except json.JSONDecodeError as error:
            raise file_error(f"{path}, line {error.lineno}",
                             f"column {error.colno}: not JSON: {error.msg}") from None
        except RecursionError:
            raise file_error(path, "nested too deeply") from None
        except BadInput as error:
            raise file_error(path, str(error), error.field) from None


def _list_rows(text: str) -> Iterator[tuple]:
    """The rows of a JSON list, each with the line at which it begins."""
    json.loads(text)
    decoder, space = json.JSONDecoder(object_pairs_hook=_unique_keys), re.compile(r"[\s,]*")
    start, number, last = text.index("[") + 1, 1, 0
    while text[start := space.match(text, start).end()] != "]":
        number, last = number + text.count("\n", last, start), start
        try:
            record, start = decoder.raw_decode(text, start)
        except BadInput as error:
            record, (_, start) = error, json.JSONDecoder().raw_decode(text, start)
        yield number, record


def _object_rows(text: str) -> Iterator[tuple]:
    """The rows of the one list of objects in an object that is no row itself; else the object as a row."""
    data = load_json(text)
    lists = [value for value in data.values() if isinstance(value, list) and value
             and isinstance(value[0], dict)] if isinstance(data, dict) else []
    is_row = len(lists) != 1 or set(data) & set(itertools.chain(*SHAPES.values()))
    return enumerate([data] if is_row else lists[0], 1)


def _read_csv(path: Path) -> Iterator[tuple]:
    csv.field_size_limit(sys.maxsize)
    lines = (line + "\n" for _, line in _sound_lines(path))
    reader = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    start = 1
    try:
        names = [name for name in reader.fieldnames or () if name]
        _refuse_doubled(names, f"{path}, line 1")
        if len(names) == 1 and ";" in names[0]:
            raise file_error(f"{path}, line 1", "columns with semicolons between them; save with commas")
        start = reader.line_num + 1
        for record in reader:
            spare = record.pop(None, None)
            yield start, BadInput(f"{len(spare)} more field(s) than the header has") if spare else record
            start = reader.line_num + 1
    except csv.Error as error:
        raise file_error(f"{path}, line {start}", f"this row is not CSV: {error}") from None


def _read_parquet(path: Path) -> Iterator[tuple]:
    try:
        with ParquetFile(path) as file:
            _refuse_doubled(file.schema_arrow.names, path)
            yield from enumerate(
                (row for batch in file.iter_batches(READ_BATCH) for row in batch.to_pylist()), 1)
    except (pa.ArrowException, OSError) as error:
        raise file_error(path, f"not readable as Parquet: {error}") from None


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
        if filled and (paragraph := "\n".join(lines)).strip():
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
