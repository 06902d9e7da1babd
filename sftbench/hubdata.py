"""Data sets of the `datasets` library: saved folders and hub names; without a network, what is cached."""

import contextlib
from pathlib import Path

import datasets

from .errors import BadInput

PATIENCE = 4  # seconds until the hub counts as out of reach; the library itself tries for 23


def saved(folder: Path, split: str = "") -> datasets.Dataset:
    """A data set that `save_to_disk` wrote; of several splits the named one, else `train`."""
    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{folder}: not readable as a saved data set: {error}") from None
    if not isinstance(found, datasets.DatasetDict):
        return found
    if (split or "train") not in found:
        raise BadInput(f"{folder}: it has the splits {', '.join(found)}; name one as {folder}#SPLIT")
    return found[split or "train"]


def load(text: str) -> datasets.Dataset:
    """A hub data set, from the cache where the hub is out of reach; no code of its own is run.

    Raises BadInput, with the command that fetches it, for one that is neither there nor cached.
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
                       f'python -c "import datasets; {fetch}"') from None


@contextlib.contextmanager
def _offline_without_network():
    """Turn the library's offline mode on for as long as the block runs, if the hub does not answer."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session
    before = datasets.config.HF_HUB_OFFLINE
    try:
        if not before:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # whichever error its transport has for "out of reach"
        datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
