"""The configurations that a folder's data card names, each with the files of its splits.

The hub's data cards have them in the YAML above their README.md; `datasets` (5.2) reads them before any name
of a file, and so does this.
"""

import re
from pathlib import Path

from datasets.data_files import sanitize_patterns
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData, metadata_load

from ..errors import file_error

CARD = "README.md"
WILDCARDS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def read_card_splits(folder: Path, split: str,
                     names: list[str]) -> tuple[dict[str, str | None], str, str] | None:
    """The split of each file by the card, what names a split of its configuration, and the wanted split.

    `split` is what stands behind `FOLDER#`: a split, a configuration or both with a slash between. None where
    the card names no file that is here. Raises BadInput where it names several configurations and none is the
    default.
    """
    configurations = _read_configurations(folder)
    if not configurations:
        return None
    name, _, wanted = split.partition("/")
    if name not in configurations:
        name, wanted = configurations.get_default_config_name(), split
    if name is None:
        raise file_error(folder, f"its card has the configurations {', '.join(configurations)}; name one as "
                         f"{folder}#{next(iter(configurations))}")
    patterns = sanitize_patterns(configurations[name]["data_files"])
    splits = {file: next((split for split, paths in patterns.items()
                          if any(_matches(file, path) for path in paths)), None) for file in names}
    only = name == configurations.get_default_config_name()
    return (splits, f"{folder}#{'' if only else name + '/'}", wanted) if any(splits.values()) else None


def _read_configurations(folder: Path) -> MetadataConfigs:
    """The configurations that name files; none where the card has no such thing, or nonsense."""
    try:
        card = metadata_load(folder / CARD)
        found = MetadataConfigs.from_dataset_card_data(DatasetCardData(**card)) if card else MetadataConfigs()
    except Exception:  # of YAML, of the hub's checks: the card is then a text like any other
        return MetadataConfigs()
    return MetadataConfigs({name: values for name, values in found.items() if values.get("data_files")})


def _matches(file: str, pattern: str) -> bool:
    """Whether a pattern of a card, such as `en/train-*`, names a file or the folder that it lies in."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("./").rstrip("/"))
    return re.fullmatch("".join(WILDCARDS.get(part, re.escape(part)) for part in parts) + "(?:/.*)?",
                        file) is not None
