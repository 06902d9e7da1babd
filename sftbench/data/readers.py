"""Files, folders, saved data sets and hub names to records, each with its line or row.

Everything but `.json` is read piece by piece. A record that cannot be read is a BadInput in its place, so
that `bad_rows drop` can leave it out. The readers of files are ours, as the builders of `datasets` (5.2.0,
measured) lose what an error has to say or what a row has:

- csv guesses types (007 becomes 7.0, an empty answer None), and stops at a row with too many fields,
- json names an offset in place of a line, and adds every field of any row to all rows, as None,
- text names no lines, and takes a line of spaces for text,
- parquet writes a copy of the file into the cache before the first row is read.
"""

import contextlib
import csv
import hashlib
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa

from ..errors import BadInput
from ..runs.stage_store import file_sha256
from .conversations import SHAPES
from .sources import TEXT_SUFFIXES, expand_path, locate_source, parse_source

PIECE_CHARACTERS = 2000  # characters: plain text is cut at blank lines into rows of about this length
READ_BATCH = 1000  # rows of a table in memory at a time


@dataclass
class Origin:
    """One file or data set: its name, the unit of its places, a hash of its content, and how it is read."""

    name: str
    unit: str  # line or row
    content: str
    records: Callable[[], Iterator[tuple]]  # of number and record, or of number and BadInput
    shape: str | None = None
    weight: float = 1.0


def open_sources(source: str, role: str) -> list[Origin]:
    """The files and data sets that a source names (see `sources.parse_source`); raises BadInput."""
    return [origin for shape, path, weight in parse_source(source, role)
            for origin in _expand(path, role, shape, weight)]


def _expand(path: str, role: str, shape: str | None, weight: float) -> list[Origin]:
    place = locate_source(path, role)
    if place is None:
        return [_dataset(path, load_hub_dataset(path), shape, weight)]
    if place.is_file():
        return [_file(place, shape, weight)]
    if any((place / name).exists() for name in ("state.json", "dataset_dict.json")):
        split = "" if expand_path(path).exists() else path.partition("#")[2]
        return [_dataset(path, load_saved_dataset(place, split), shape, weight)]
    return [_file(file, shape, weight) for file in _files(place)]


def _files(folder: Path) -> list[Path]:
    """The data files of a folder and of those below it, by name; hidden ones are passed over."""
    if folder.resolve() == Path(folder.resolve().anchor):
        raise BadInput(f"{folder}: no such file; this is the root of the file system, name a folder of data",
                       where=str(folder))
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in READERS and path.is_file()
                   and not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if not found:
        raise BadInput(f"{folder}: no file ending in {', '.join(READERS)} in this folder", where=str(folder))
    return found


def _file(path: Path, shape: str | None, weight: float) -> Origin:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise BadInput(f"{path}: files ending in {', '.join(READERS)} are read, not {path.suffix!r}",
                       where=str(path))
    unit = "row" if path.suffix.lower() == ".parquet" else "line"
    try:
        return Origin(str(path), unit, file_sha256(path), lambda: reader(path), shape, weight)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}", where=str(path)) from None


def _dataset(name: str, table: datasets.Dataset, shape: str | None, weight: float) -> Origin:
    def records():
        return enumerate((dict(zip(batch, values, strict=True)) for batch in table.iter(READ_BATCH)
                          for values in zip(*batch.values(), strict=True)), 1)
    return Origin(name, "row", table._fingerprint, records, shape, weight)


def origin_in_memory(name: str, rows: list[dict]) -> Origin:
    """Rows at hand as an origin."""
    content = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return Origin(name, "row", content, lambda: enumerate(rows, 1))


# --- files to records: each reader gives (line or row, record or BadInput) ---------------------------------


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
            raise BadInput(f"{path}, line {number}: {line}", where=f"{path}, line {number}")
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
        data = json.loads(text) if filled else []
        if isinstance(data, list):
            yield from _list_rows(text) if data else []
            return
        lists = [value for value in data.values() if isinstance(value, list)
                 and value and isinstance(value[0], dict)] if isinstance(data, dict) else []
        one = len(lists) == 1 and not set(data) & {field for shape in SHAPES.values() for field in shape}
        json.loads(text, object_pairs_hook=_unique_keys)
        yield from enumerate(lists[0] if one else [data], 1)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}",
                       where=f"{path}, line {error.lineno}") from None
    except RecursionError:
        raise BadInput(f"{path}: nested too deeply", where=str(path)) from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}", field=error.field, where=str(path)) from None


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
        raise BadInput(f"{path}, in the row from line {start}: not CSV: {error}",
                       where=f"{path}, line {start}") from None


def _read_parquet(path: Path) -> Iterator[tuple]:
    import pyarrow.parquet as pq
    try:
        with pq.ParquetFile(path) as file:
            yield from enumerate(
                (row for batch in file.iter_batches(READ_BATCH) for row in batch.to_pylist()), 1
            )
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not readable as Parquet: {error}", where=str(path)) from None


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
    lines, start = [], 0
    for number, line in itertools.chain(_sound_lines(path), [(0, "")]):
        if line:
            start = start if lines else number
            lines.append(line)
        elif lines:
            paragraph, lines = "\n".join(lines), []
            if paragraph.strip():
                yield start, paragraph


READERS = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    **dict.fromkeys(TEXT_SUFFIXES, _read_text),
}

HUB_TIMEOUT = 4  # seconds until the hub counts as out of reach; the library itself tries for 23


def load_saved_dataset(folder: Path, split: str = "") -> datasets.Dataset:
    """A data set that `save_to_disk` wrote; of several splits the named one, else `train`."""
    try:
        data = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{folder}: not readable as a saved data set: {error}", where=str(folder)) from None
    if not isinstance(data, datasets.DatasetDict):
        return data
    if (split or "train") not in data:
        raise BadInput(f"{folder}: it has the splits {', '.join(data)}; name one as {folder}#SPLIT",
                       where=str(folder))
    return data[split or "train"]


def load_hub_dataset(text: str) -> datasets.Dataset:
    """A hub data set, from the cache where the hub is out of reach; `datasets` (5.2) runs no code of its own.

    Raises BadInput, with the command that fetches it, for one that is on the hub as little as in the cache.
    """
    name, _, split = text.partition("#")
    name, _, revision = name.partition("@")
    configuration, _, split = split.rpartition("/")
    options = {"split": split or "train"} | ({"revision": revision} if revision else {})
    fetch = f"datasets.load_dataset({name!r}, {configuration or None!r}, **{options!r})"
    try:
        with _offline_without_network():
            return datasets.load_dataset(name, configuration or None, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise BadInput(f"{text}: no such file or folder here, and as a hub data set it cannot be read: "
                       f"{str(error).splitlines()[0]}. Fetch it once where there is a network: "
                       f'python -c "import datasets; {fetch}"', where=text) from None


@contextlib.contextmanager
def _offline_without_network():
    """Turn the library's offline mode on for as long as the block runs, if the hub does not answer."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session
    before = datasets.config.HF_HUB_OFFLINE
    try:
        if not before:
            get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # whichever error its transport has for "out of reach"
        datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
