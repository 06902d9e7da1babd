"""A source opened: its files, the files of its folders, saved data sets and data sets of the hub."""

import contextlib
import hashlib
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path, PurePath

import datasets

from ..errors import file_error
from ..runs.stage_store import file_sha256
from .columns import propose_columns, rename_columns
from .contents import Content
from .documents import check_document, describe_document, name_section, read_document
from .folders import Selection, find_missing, find_probe, select_contents
from .names import (
    DOCUMENT_SUFFIXES,
    SourcePart,
    expand_path,
    locate_source,
    parse_source,
    write_source,
)
from .plain_text import PIECE_CHARACTERS
from .readers import READERS

HUB_TIMEOUT = 4  # seconds until the hub counts as out of reach; `datasets` (5.2) itself tries for 23
NAMED_ALIKE = 20  # files of one folder that are passed over for one reason, and named one by one
SAMPLE = 50  # rows by which columns are proposed
UNITS = {".parquet": "row", ".pdf": "page", **dict.fromkeys(DOCUMENT_SUFFIXES[1:], "section")}


@dataclass
class Origin:
    """One file or data set: its name, what it counts, a hash of its content, and how it is read.

    `name_place` names one of its parts where its number is not enough; `describe` says how it is cut into
    rows and what of it is not read.
    """

    name: str
    unit: str  # line, row, page or section
    content: str
    records: Callable[[], Iterator[tuple]]  # of number and record, or of number and BadInput
    shape: str | None = None
    weight: float = 1.0
    columns: dict[str, str] | None = None  # the file's own, by the field as which they are read
    name_place: Callable[[int], str] | None = None
    describe: Callable[[], str] | None = None

    def where(self, number: int) -> str:
        """The name of one of its lines, rows, pages or sections."""
        return f"{self.name}, {self.name_place(number) if self.name_place else f'{self.unit} {number}'}"

    @property
    def note(self) -> str:
        """How it is cut into rows and what of it is not read, in a line; this reads the file. Or empty."""
        return self.describe() if self.describe else ""


def open_sources(source: str, role: str) -> list[Origin]:
    """The files and data sets that a source names (see `names.parse_source`); raises BadInput."""
    found = _select_parts(source, role)
    alone = len(found) == 1 and len(found[0][1].contents) == 1
    digests: dict[Path, str] = {}
    return [_apply_part(origin, part) for part, selection in found for origin in (
        [_file(one, alone, digests) for one in selection.contents] or [_open_dataset(part.path, role)])]


def describe_source(source: str, role: str) -> dict:
    """What `Rows.about` has of a source: `offered_probe`, and files `passed_over`, `unsplit` and `missing`.

    Of many files in one folder that are passed over for one reason, only their number is named.
    """
    selected, alike = _select_parts(source, role), defaultdict(list)
    for name, why in _passed_over(selected).items():
        alike[os.path.dirname(name), PurePath(name).suffix, why].append(name)
    named = {}
    for (folder, suffix, why), files in alike.items():
        if len(files) > NAMED_ALIKE:
            files = [f"{os.path.join(folder, '*')}{suffix} ({len(files):,} files)"]
        named |= dict.fromkeys(files, why)
    return {"passed_over": named, "offered_probe": _offered_probe(selected),
            "unsplit": [name for _, selection in selected for name in selection.unsplit],
            "missing": find_missing(
                [content.name for _, selection in selected for content in selection.contents],
                {str(expand_path(part.path)) for part, _ in selected})}


def _select_parts(source: str, role: str) -> list[tuple[SourcePart, Selection]]:
    """Each part of a source with what of it is read; this lists folders and archives."""
    return [(part, _select(part, role)) for part in parse_source(source, role)]


def passed_over(source: str, role: str) -> dict[str, str]:
    """The files of a source's folders and archives that are not read, and other splits, with the reason."""
    return _passed_over(_select_parts(source, role))


def _passed_over(selected: list[tuple[SourcePart, Selection]]) -> dict[str, str]:
    read = {content.name for _, selection in selected for content in selection.contents} | {
        part.path for part, _ in selected}
    return {name: why for _, selection in selected for name, why in selection.passed_over.items()
            if name not in read}


def offered_probe(source: str, role: str = "data") -> str | None:
    """The source that may serve this one as a probe: its validation or test split; None without any."""
    return _offered_probe(_select_parts(source, role))


def _offered_probe(selected: list[tuple[SourcePart, Selection]]) -> str | None:
    read = {str(expand_path(part.path)) for part, _ in selected}
    probes = [write_source(part._replace(path=selection.probe, weight=1.0)) for part, selection in selected
              if selection.probe and selection.probe not in read]
    return ", ".join(probes) or None


def propose_source(origin: Origin, kind: str) -> str | None:
    """The origin's name with its columns read as fields (see `propose_columns`); None where none fit."""
    if origin.shape or origin.columns:  # what is stated is not guessed
        return None
    sample = [record for _, record in itertools.islice(origin.records(), SAMPLE) if isinstance(record, dict)]
    columns = propose_columns(list(dict.fromkeys(itertools.chain(*sample))), sample, kind)
    return columns and f"{write_source(SourcePart(None, origin.name))}{columns}"


def _apply_part(origin: Origin, part: SourcePart) -> Origin:
    """The origin with the shape, weight and columns that its source states."""
    origin = replace(origin, shape=part.shape, weight=part.weight)
    if not part.columns:
        return origin
    return replace(origin, content=f"{origin.content} {json.dumps(part.columns, sort_keys=True)}",
                   columns=part.columns,
                   records=partial(rename_columns, origin.records, part.columns, origin.name))


def split_path(path: str) -> tuple[str, str]:
    """A local path and the split that is named behind it."""
    bare, _, split = path.rpartition("#")
    return (path, "") if expand_path(path).exists() else (bare, split)


def _select(part: SourcePart, role: str) -> Selection:
    """What is read of a part and what is not; without contents for a data set."""
    path = locate_source(part.path, role)
    if path is None:
        name, _, rest = part.path.partition("#")
        configuration, slash, wanted = rest.rpartition("/")
        behind, splits = f"{name}#{configuration}{slash}", list(load_hub_dataset(part.path).info.splits or ())
    elif _is_saved(path):
        behind, wanted, splits = f"{path}#", split_path(part.path)[1], load_saved_splits(path)
    else:
        return select_contents(path, split_path(part.path)[1], tasks="_tasks" in role)
    wanted = wanted or "train"
    others = {f"{behind}{split}": f"split {split}; this name reads it" for split in splits if split != wanted}
    probe = find_probe(wanted, splits)
    return Selection([], others, probe and f"{behind}{probe}")


def _is_saved(path: Path) -> bool:
    return any((path / file).exists() for file in ("state.json", "dataset_dict.json"))


def _file(content: Content, alone: bool, digests: dict[Path, str]) -> Origin:
    suffix = content.suffix
    try:
        digest = digests[content.path] = digests.get(content.path) or file_sha256(content.path)
    except OSError as error:
        raise file_error(content.path, f"cannot be read: {error.strerror}") from None
    if content.member:
        digest += f" {content.member.filename}"
    origin = Origin(content.name, UNITS.get(suffix, "line"), digest, None)
    if suffix in READERS:
        return replace(origin, records=partial(READERS[suffix], content))
    check_document(content)
    return replace(origin, content=f"{digest} {PIECE_CHARACTERS} {alone}",
                   records=partial(read_document, content, alone),
                   describe=partial(describe_document, content, alone),
                   name_place=partial(name_section, content) if origin.unit == "section" else None)


def _open_dataset(name: str, role: str) -> Origin:
    path = locate_source(name, role)
    table = load_hub_dataset(name) if path is None else load_saved_dataset(path, split_path(name)[1])
    return Origin(name, "row", table._fingerprint, lambda: enumerate(table, 1))


def origin_in_memory(name: str, rows: list[dict]) -> Origin:
    """Rows at hand as an origin."""
    content = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return Origin(name, "row", content, lambda: enumerate(rows, 1))


def load_saved_splits(folder: Path) -> list[str]:
    """The names of the splits that `save_to_disk` wrote; none for a single data set."""
    try:
        return json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    except (OSError, ValueError, KeyError, TypeError):  # a single one; what is damaged is refused when loaded
        return []


def load_saved_dataset(folder: Path, split: str = "") -> datasets.Dataset:
    """A data set that `save_to_disk` wrote; of several splits the named one, else `train`."""
    try:
        data = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise file_error(folder, f"not readable as a saved data set: {error}") from None
    if not isinstance(data, datasets.DatasetDict):
        if split:
            raise file_error(folder, f"it has no splits; write {folder} without #{split}")
        return data
    if (split or "train") not in data:
        raise file_error(folder, f"it has the splits {', '.join(data)}; name one as {folder}#SPLIT")
    return data[split or "train"]


@lru_cache(maxsize=8)  # its splits are asked for beside its rows, and each time the hub would be
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
        with offline_without_network():
            return datasets.load_dataset(name, configuration or None, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise file_error(text, "no such file or folder here, and as a hub data set it cannot be read: "
                         f"{str(error).splitlines()[0]}. Fetch it once where there is a network: "
                         f'python -c "import datasets; {fetch}"') from None


@contextlib.contextmanager
def offline_without_network():
    """Let `datasets` read its cache alone while the block runs, if the hub does not answer.

    It would find that out by itself, but huggingface_hub (2.4) tries for half a minute.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if not datasets.config.HF_HUB_OFFLINE:
            get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # whichever error its transport has for "out of reach"
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
