"""A source opened: its files, the files of its folders, saved data sets and data sets of the hub."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import datasets

from ..errors import file_error
from ..runs.stage_store import file_sha256
from .names import expand_path, locate_source, parse_source
from .readers import READERS

HUB_TIMEOUT = 4  # seconds until the hub counts as out of reach; `datasets` (5.2) itself tries for 23


@dataclass
class Origin:
    """One file or data set: its name, what it counts, a hash of its content, and how it is read."""

    name: str
    unit: str  # line or row
    content: str
    records: Callable[[], Iterator[tuple]]  # of number and record, or of number and BadInput
    shape: str | None = None
    weight: float = 1.0

    def where(self, number: int) -> str:
        """The name of one of its lines or rows."""
        return f"{self.name}, {self.unit} {number}"


def open_sources(source: str, role: str) -> list[Origin]:
    """The files and data sets that a source names (see `sources.parse_source`); raises BadInput."""
    return [replace(origin, shape=shape, weight=weight) for shape, name, weight in parse_source(source, role)
            for origin in _expand(name, role)]


def _expand(name: str, role: str) -> list[Origin]:
    path = locate_source(name, role)
    if path is None:
        return [_dataset(name, load_hub_dataset(name))]
    if any((path / file).exists() for file in ("state.json", "dataset_dict.json")):
        split = "" if expand_path(name).exists() else name.partition("#")[2]
        return [_dataset(name, load_saved_dataset(path, split))]
    return [_file(file) for file in (_files(path) if path.is_dir() else [path])]


def _files(folder: Path) -> list[Path]:
    """The data files of a folder and of those below it, by name, without hidden ones."""
    if folder.resolve() == Path(folder.resolve().anchor):
        raise file_error(folder, "no such file; this is the root of the file system, name a folder of data")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in READERS and path.is_file()
                   and not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if not files:
        raise file_error(folder, f"no file ending in {', '.join(READERS)} in this folder")
    return files


def _file(path: Path) -> Origin:
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise file_error(path, f"files ending in {', '.join(READERS)} are read, not {path.suffix!r}")
    try:
        return Origin(str(path), "row" if suffix == ".parquet" else "line", file_sha256(path),
                      partial(READERS[suffix], path))
    except OSError as error:
        raise file_error(path, f"cannot be read: {error.strerror}") from None


def _dataset(name: str, table: datasets.Dataset) -> Origin:
    return Origin(name, "row", table._fingerprint, lambda: enumerate(table, 1))


def origin_in_memory(name: str, rows: list[dict]) -> Origin:
    """Rows at hand as an origin."""
    content = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return Origin(name, "row", content, lambda: enumerate(rows, 1))


def load_saved_dataset(folder: Path, split: str = "") -> datasets.Dataset:
    """A data set that `save_to_disk` wrote; of several splits the named one, else `train`."""
    try:
        data = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise file_error(folder, f"not readable as a saved data set: {error}") from None
    if not isinstance(data, datasets.DatasetDict):
        return data
    if (split or "train") not in data:
        raise file_error(folder, f"it has the splits {', '.join(data)}; name one as {folder}#SPLIT")
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
        raise file_error(text, "no such file or folder here, and as a hub data set it cannot be read: "
                         f"{str(error).splitlines()[0]}. Fetch it once where there is a network: "
                         f'python -c "import datasets; {fetch}"') from None


@contextlib.contextmanager
def _offline_without_network():
    """Turn the offline mode of `datasets` on while the block runs, if the hub does not answer."""
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
