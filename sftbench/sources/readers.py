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
import io
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from ..errors import BadInput, file_error
from .contents import Content
from .names import SHAPES

DELIMITERS = ",;\t|"  # between columns; the first wins where a header has as many columns by another
READ_BATCH = 1000  # rows of a table in memory at a time
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # as Excel writes and reads it
JSON_LINES = re.compile(r"\s*\{.*\}[^\S\n]*\n\s*\S")  # an object on the first line, and something below it


def load_json(text: str):
    """The value of JSON text; raises BadInput for a doubled key and deep nesting, else JSONDecodeError.

    NaN, as pandas and Python write what is not there, is null.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_read_constant)
    except RecursionError:
        raise BadInput("nested too deeply") from None


def _read_constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    record = dict(pairs)
    if len(record) < len(pairs):
        _refuse_doubled([key for key, _ in pairs])
    return record


def _refuse_doubled(names: list[str], where: str = "") -> None:
    """Refuse names of which one is doubled; the libraries would take its last value without a word."""
    if len(set(names)) < len(names):
        name, _ = Counter(names).most_common(1)[0]
        why = f"the key {name!r} appears more than once; keep one of them"
        raise file_error(where, why, name) if where else BadInput(why, field=name)


def read_lines(content: Content) -> Iterator[tuple]:
    """Numbered lines without their ends, or BadInput at a byte that is no text."""
    number, offset = 0, 0
    with content.open() as file:
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


def read_sound_lines(content: Content) -> Iterator[tuple[int, str]]:
    """The same for formats in which one bad byte spoils the whole file."""
    for number, line in read_lines(content):
        if isinstance(line, BadInput):
            raise file_error(f"{content.name}, line {number}", str(line))
        yield number, line


def _read_jsonl(content: Content) -> Iterator[tuple]:
    for number, line in read_lines(content):
        if isinstance(line, BadInput):
            yield number, line
        elif line.strip():
            try:
                yield number, load_json(line)
            except json.JSONDecodeError as error:
                yield number, BadInput(f"column {error.colno}: not JSON: {error.msg}")
            except BadInput as error:
                yield number, error


def _read_json(content: Content) -> Iterator[tuple]:
    """A list of rows, an object that has one, or JSON Lines.

    The first two are in memory as a whole, so that a fault is reported with line and column before a row is
    used; large data are JSON Lines.
    """
    text = "\n".join(line for _, line in read_sound_lines(content))
    if JSON_LINES.match(text):
        yield from _read_jsonl(content)
    elif first := text.lstrip()[:1]:
        try:
            yield from (_list_rows if first == "[" else _object_rows)(text)
        except json.JSONDecodeError as error:
            raise file_error(f"{content.name}, line {error.lineno}",
                             f"column {error.colno}: not JSON: {error.msg}") from None
        except RecursionError:
            raise file_error(content.name, "nested too deeply") from None
        except BadInput as error:
            raise file_error(content.name, str(error), error.field) from None


def _list_rows(text: str) -> Iterator[tuple]:
    """The rows of a JSON list, each with the line at which it begins."""
    json.loads(text)
    decoder, space = json.JSONDecoder(
        object_pairs_hook=_unique_keys, parse_constant=_read_constant), re.compile(r"[\s,]*")
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


def _read_csv(content: Content) -> Iterator[tuple]:
    csv.field_size_limit(sys.maxsize)
    lines = ((number, line + "\n") for number, line in read_sound_lines(content))
    filled = (line for line in lines if line[1].strip())
    start, header = next(filled, (1, ""))
    if stated := SEPARATOR_LINE.fullmatch(header):
        start, header = next(filled, (2, ""))
    above = start - 1
    delimiter = stated[1] if stated else _find_delimiter(header, content.suffix)
    names = next(csv.reader([header], delimiter=delimiter), [])
    reader = csv.DictReader(itertools.chain([header], (line for _, line in lines)), strict=True,
                            delimiter=delimiter, skipinitialspace=0 < _spaced(names) == len(names) - 1)
    try:
        _refuse_doubled([name for name in reader.fieldnames or () if name], f"{content.name}, line {start}")
        start = above + reader.line_num + 1
        for record in reader:
            spare = record.pop(None, None)
            yield start, BadInput(f"{len(spare)} more field(s) than the header has") if spare else record
            start = above + reader.line_num + 1
    except csv.Error as error:
        raise file_error(f"{content.name}, line {start}", f"this row is not CSV: {error}") from None


def _find_delimiter(header: str, suffix: str) -> str:
    """What a header has between its columns; `csv.Sniffer` guesses from letters and takes any of them."""
    order = "\t,;|" if suffix == ".tsv" else DELIMITERS
    columns = {delimiter: next(csv.reader([header], delimiter=delimiter), []) for delimiter in order}
    return max(order, key=lambda delimiter: (len(columns[delimiter]), -_spaced(columns[delimiter])))


def _spaced(names: list[str]) -> int:
    """How many columns but the first begin with a space: all, where it stands behind each comma, or few."""
    return sum(name.startswith(" ") for name in names[1:])


def _read_parquet(content: Content) -> Iterator[tuple]:
    try:
        with content.open() as stream, ParquetFile(
                stream if stream.seekable() else io.BytesIO(stream.read())) as file:
            _refuse_doubled(file.schema_arrow.names, content.name)
            rows = (row for batch in file.iter_batches(READ_BATCH) for row in batch.to_pylist())
            yield from enumerate(rows, 1)
    except (pa.ArrowException, OSError) as error:
        raise file_error(content.name, f"not readable as Parquet: {error}") from None


READERS: dict[str, Callable[[Content], Iterator[tuple]]] = {
    ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
