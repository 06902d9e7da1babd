"""Data from files to rows: read, check, and split off probes. A row is `{"text": …}` or `{"messages": […]}`.

JSON Lines with `text`, `messages` or `prompt`/`completion`, and plain text files are read. Whatever cannot be
used is refused with its file and line before a model is loaded.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from . import pocket
from .errors import BadInput
from .pocket import world
from .recipe import ROLES, Recipe

PIECE = 2000  # characters: plain text is cut at blank lines into rows of about this length


@dataclass
class Role:
    """The rows of one role: `train` and `probe`, where they came from, and how many were dropped and why."""

    source: str
    train: list[dict]
    probe: list[dict]
    dropped: dict = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A hash of the training rows, for stage keys."""
        return digest(self.train)


def digest(rows: list[dict]) -> str:
    """A hash of rows and their order, 20 hex digits."""
    whole = hashlib.sha256()
    for row in rows:
        whole.update(_canonical(row))
    return whole.hexdigest()[:20]


def load_roles(recipe: Recipe) -> dict[str, Role]:
    """Every role that has data, with its probe; roles without data are absent.

    A pocket model brings the pocket's data for the domain, and for the general side, where the user gave none
    of that side; any other model brings nothing. Raises BadInput, naming file and line, for rows that cannot
    be used.
    """
    roles = {}
    for name in ROLES:
        source = getattr(recipe, name) or ("pocket" if _pocket_serves(recipe, name) else None)
        probe_source = getattr(recipe, f"{name}_probe")
        if source is None and probe_source is None:
            continue
        if source == "pocket":
            train, probe = (world.rows(name, split, recipe.pocket_seed, recipe.pocket_related)
                            for split in world.SPLITS)
        else:
            train, probe = read(source, name) if source else [], []
        if probe_source is not None:
            probe = read(probe_source, name)
        elif not probe:
            train, probe = split(train, recipe.probe_share, source)
        roles[name] = _without_leak(source or probe_source, train, probe, recipe.probe_rows)
    return roles


def _pocket_serves(recipe: Recipe, name: str) -> bool:
    side = name.split("_")[0]
    own = any(getattr(recipe, other) for other in ROLES if other.startswith(side))
    return recipe.model in pocket.FOLDERS and not own


def _without_leak(source: str, train: list[dict], probe: list[dict], most: int) -> Role:
    """The role without training rows that stand in the probe, word for word."""
    probe = probe[:most] if len(probe) <= most else sorted(probe, key=_canonical_hash)[:most]
    known = {_canonical(row) for row in probe}
    kept = [row for row in train if _canonical(row) not in known]
    dropped = {"also in the probe": len(train) - len(kept)} if len(kept) < len(train) else {}
    return Role(source, kept, probe, dropped)


def split(rows: list[dict], share: float, source: str = "data") -> tuple[list[dict], list[dict]]:
    """Training and probe rows, told apart by a hash of each row, so that added rows never move old ones.

    The row of the smallest hash is always a probe row. Raises BadInput for fewer than two different rows.
    """
    numbers = {_canonical(row): _canonical_hash(row) for row in rows}
    if len(numbers) < 2:
        raise BadInput(f"{source}: {len(numbers)} different row(s); at least 2 are needed, "
                       "one of them as a probe")
    border = max(share * 2**64, min(numbers.values()) + 1)
    probe = {row for row, number in numbers.items() if number < border}
    if len(probe) == len(numbers):
        probe.discard(max(probe, key=numbers.get))
    train = [row for row in rows if _canonical(row) not in probe]
    held = list({_canonical(row): row for row in rows if _canonical(row) in probe}.values())
    return train, held


def _canonical(row: dict) -> bytes:
    return json.dumps(row, sort_keys=True, ensure_ascii=False).encode()


def _canonical_hash(row: dict) -> int:
    return int.from_bytes(hashlib.sha256(_canonical(row)).digest()[:8], "big")


def read(path: str, role: str) -> list[dict]:
    """The rows of a file for this role: `.jsonl` of any known shape, or plain `.txt`/`.md` text.

    Raises BadInput with path, line and remedy.
    """
    place = Path(path)
    if not place.is_file():
        raise BadInput(f"{role}: {path}: no such file")
    text = _decode(place)
    if place.suffix in (".jsonl", ".ndjson"):
        rows = [_row(f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), 1)
                if line.strip()]
    elif place.suffix in (".txt", ".md"):
        rows = [{"text": piece} for piece in _pieces(text)]
    else:
        raise BadInput(f"{role}: {path}: files ending in .jsonl, .txt or .md are read, not {place.suffix!r}")
    if not rows:
        raise BadInput(f"{role}: {path}: the file holds no row")
    wanted = "text" if role.endswith("_text") else "messages"
    wrong = sum(wanted not in row for row in rows)
    if wrong:
        number = next(number for number, row in enumerate(rows, 1) if wanted not in row)
        shape = "'text'" if wanted == "text" else "'messages' or 'prompt' and 'completion'"
        raise BadInput(f"{role}: {path}: {wrong} of {len(rows)} rows, the first of them row {number}, "
                       f"are not of this role's shape; it needs {shape}")
    return rows


def _decode(path: Path) -> str:
    """The file's text without a byte order mark, with plain line ends; raises BadInput at line and byte."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[:error.start].count(b"\n") + 1
        raise BadInput(f"{path}, line {line}: byte {error.start} is not UTF-8; "
                       "save the file as UTF-8") from None
    if "\0" in text:
        line = text[:text.index("\0")].count("\n") + 1
        raise BadInput(f"{path}, line {line}: byte {raw.index(0)} is NUL; is this a text file?")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _pieces(text: str) -> list[str]:
    """Text cut at blank lines into pieces of about PIECE characters."""
    pieces, piece = [], ""
    for paragraph in (part.strip("\n") for part in text.split("\n\n") if part.strip()):
        if piece and len(piece) + len(paragraph) > PIECE:
            pieces.append(piece)
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    return pieces + [piece] if piece else pieces


def _row(where: str, line: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}, column {error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise BadInput(f"{where}: nested too deeply") from None
    if not isinstance(row, dict):
        raise BadInput(f"{where}: a row must be an object {{…}}, not {type(row).__name__}")
    if "messages" in row:
        return {"messages": _messages(where, row["messages"])}
    if "prompt" in row or "completion" in row:
        turns = [{"role": "user", "content": row.get("prompt")},
                 {"role": "assistant", "content": row.get("completion")}]
        return {"messages": _messages(where, turns, names=("prompt", "completion"))}
    if "text" in row:
        _text(where, "text", row["text"])
        return {"text": row["text"]}
    raise BadInput(f"{where}: no field 'text', 'messages' or 'prompt'; "
                   f"it has {', '.join(map(repr, row)) or 'none'}")


def _text(where: str, name: str, value) -> None:
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where}: field {name!r} must be text that is not empty, not {value!r:.40}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{where}: field {name!r} holds half a surrogate pair "
                       f"at character {error.start}") from None


def _messages(where: str, messages, names: tuple = ()) -> list[dict]:
    """The messages if [system] (user assistant)+, each with text; raises BadInput naming the message."""
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{where}: 'messages' must be a list with at least one user and one assistant message")
    clean = []
    for number, message in enumerate(messages, 1):
        name = names[number - 1] if names else f"messages[{number}].content"
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            role = message.get("role") if isinstance(message, dict) else message
            raise BadInput(f"{where}: message {number} must have the role system, user or assistant, "
                           f"not {role!r:.40}")
        _text(where, name, message.get("content"))
        clean.append({"role": message["role"], "content": message["content"]})
    turns = [message["role"] for message in clean]
    turns = turns[1:] if turns[0] == "system" else turns
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise BadInput(f"{where}: messages must be user and assistant in turn and end with assistant, "
                       f"not {', '.join(turns) or 'a system message alone'}")
    return clean
