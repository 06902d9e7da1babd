"""What of a folder or a zip archive is read, by the names of its files, and why the others are not.

Splits are those of `datasets` (5.2, `data_files`): `data/SPLIT-00000-of-00002.…`, else the words train,
validation and test with their other forms as a part of a folder's or file's name. Unlike there, large and
small letters are the same, files that cannot be read make no split, a file is in one split only, and files
without such a word are for training, unless a split is named: who puts `more.jsonl` beside means it.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from datasets.data_files import FILES_TO_IGNORE, NON_WORDS_CHARS, SPLIT_KEYWORDS

from ..errors import file_error
from .cards import read_card_splits
from .contents import Content, is_archive, list_members, split_suffixes
from .names import ARCHIVE, COMPRESSED, DOCUMENT_SUFFIXES, SUFFIXES, TEXT_SUFFIXES

MOST_NUMBERED = 100_000  # files of one whole, of which each is looked for
PROBES = ("validation", "valid", "val", "dev", "test", "eval")  # the first that is there
ALL = "all"  # in place of a split's name: every file
WORDS = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
SHARD = re.compile(rf"(?:.*{re.escape(ARCHIVE)}/)?data/([^/]+)-\d{{5}}-of-\d{{5}}[^/]*\.[^/]*", re.IGNORECASE)
NUMBERED = re.compile(r"(.*\D|)(\d+)-of-(\d+)(?!\d).*", re.IGNORECASE)  # one of several files of one whole
SPLIT_WORD = re.compile(rf"(?:^|[{NON_WORDS_CHARS}])({'|'.join(WORDS)})(?=[{NON_WORDS_CHARS}]|$)",
                        re.IGNORECASE)
CARD = re.compile(r"(readme([-_. ].*)?|licen[cs]e([-_. ][\w-]{1,10})?|copying|notices?|changelog|citation|"
                  r"contributing|authors|code[-_]of[-_]conduct|(data|dataset|model)[-_ ]?card)(\.\w+)?",
                  re.IGNORECASE)
INDEX = re.compile(r"(index|manifest|.*\.index|croissant|dataset-metadata)\.json|"
                   r"(md5|sha\d*|check)sums?(\.txt)?|(requirements|robots)\.txt", re.IGNORECASE)
UNPACK, SAVE_CSV, SAVE_DOCX = "unpack it, and name the folder", "save it as CSV", "save it as .docx or .html"
REMEDIES = {
    **dict.fromkeys((".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar", ".lzma", ".lz4"), UNPACK),
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers", ".gsheet"), SAVE_CSV),
    **dict.fromkeys((".doc", ".odt", ".rtf", ".epub", ".pages", ".pptx", ".ppt"), SAVE_DOCX),
    ".arrow": "name the folder that `save_to_disk` wrote, or save it as Parquet",
}


TEXTS = (*TEXT_SUFFIXES, *DOCUMENT_SUFFIXES)
TEXT_WITH_TASKS = "a text, while this role takes tasks; give it to a role of texts"
NOT_ON_CARD = "not named by the folder's card; name the file itself to read it"
NO_SPLIT = "no split in its name, while one is named; name the file itself to read it"


@dataclass
class Selection:
    """What is read of a folder or archive, what is passed over and why, and the split to probe with."""

    contents: list[Content]
    passed_over: dict[str, str] = field(default_factory=dict)
    probe: str | None = None
    unsplit: list[str] = field(default_factory=list)  # files that are read with a split that they do not name


def select_contents(path: Path, split: str = "", tasks: bool = False) -> Selection:
    """The readable files of a file, folder or archive that belong to a split (`train` if none is named).

    For a role that takes `tasks`, plain text beside files with rows is passed over. Raises BadInput where
    there is none, and where what is named cannot be read.
    """
    if not path.is_dir() and not is_archive(path.name):
        if why := refuse_name(path.name):
            raise file_error(path, why)
        return Selection([Content(str(path), path.name, path)])
    readable, passed_over = _sort_out(path, tasks)
    if split == ALL:
        return Selection(list(readable.values()), passed_over)
    names = list(readable)
    card = read_card_splits(path, split, names) if path.is_dir() else None
    splits, behind, wanted = card or (find_splits(names), f"{path}#", split)
    wanted = _find_split(splits, wanted, behind, named_by_card=card is not None)
    read = {wanted} if split or card else {wanted, None}
    for name in names:
        if (other := splits[name]) not in read:
            passed_over[readable[name].name] = f"split {other}; {behind}{other} names it" if other else (
                NOT_ON_CARD if card else NO_SPLIT)
    probe = find_probe(wanted or "train", [one for one in splits.values() if one])
    return Selection([readable[name] for name in names if splits[name] in read], passed_over,
                     probe and f"{behind}{probe}",
                     [readable[name].name for name in names if wanted and splits[name] is None in read])


def _sort_out(path: Path, tasks: bool) -> tuple[dict[str, Content], dict[str, str]]:
    """The readable files of a folder or archive by the names below it, and why the others are not read."""
    if path.resolve() == Path(path.resolve().anchor):
        raise file_error(path, "no such file; this is the root of the file system, name a folder of data")
    readable, passed_over = {}, {}
    listed = list(_list_folder(path) if path.is_dir() else _list_archive(path, ""))
    if tasks and any(why is None and content.suffix not in TEXTS for content, why in listed):
        listed = [(content, why or (TEXT_WITH_TASKS if content.suffix in TEXTS else None))
                  for content, why in listed]
    for content, why in sorted(listed, key=lambda entry: entry[0].relative.split("/")):
        if why is None:
            readable[content.relative] = content
        else:
            passed_over[content.name] = why
    if not readable:
        examples = "".join(f"; {name}: {why}" for name, why in list(passed_over.items())[-3:])
        raise file_error(path, f"no file here ends in {', '.join(SUFFIXES)}{examples}")
    return readable, passed_over


def refuse_name(name: str) -> str | None:
    """Why a file of this name cannot be read, with the remedy; None where it can."""
    suffix, compressions = split_suffixes(name)
    if suffix in SUFFIXES or suffix == ARCHIVE and not compressions:
        return None
    if suffix in REMEDIES:
        return f"files ending in {suffix} are not read; {REMEDIES[suffix]}"
    if compressions and not suffix:
        return "its name must say what is inside, as rows.jsonl.gz does; rename it"
    return f"files ending in {', '.join((*SUFFIXES, ARCHIVE, *COMPRESSED))} are read, not {suffix!r}"


def _list_folder(folder: Path) -> Iterator[tuple[Content, str | None]]:
    """Every file below a folder, with why it is not read; of a folder that is not, only its name."""
    def fail(error: OSError):
        raise file_error(error.filename, f"cannot be read: {error.strerror}")

    for place, folders, files in os.walk(folder, onerror=fail):
        for name in list(folders):
            path = Path(place, name)
            if why := "a link to a folder; name it by itself" if path.is_symlink() else _refuse_folder(name):
                folders.remove(name)
                yield Content(f"{path}{os.sep}", path.relative_to(folder).as_posix(), path), why
        for name in files:
            path = Path(place, name)
            content = Content(str(path), path.relative_to(folder).as_posix(), path)
            why = _refuse_file(name) if path.is_file() else "no regular file, or a link to nothing"
            if why is None and is_archive(name):
                yield from _list_archive(path, content.relative + "/")
            else:
                yield content, why


def _list_archive(path: Path, above: str) -> Iterator[tuple[Content, str | None]]:
    """Every file of a zip archive, named below `above` without a folder that all of them share."""
    members, seen = [(member, _parts(member.filename)) for member in list_members(path)], set()
    shared = len({parts[0] for _, parts in members}) == 1 and all(len(parts) > 1 for _, parts in members)
    for member, parts in members:
        relative = above + "/".join(parts[shared:])
        why = next(filter(None, map(_refuse_folder, parts[:-1])), None) or _refuse_file(parts[-1])
        if why is None and is_archive(member.filename):
            why = f"an archive in an archive; {UNPACK}"
        if why is None and relative in seen:
            why = "the archive has another file of this name, which is read; unpack it and look"
        seen.add(relative)
        yield Content(f"{path}/{member.filename}", relative, path, member), why


def _parts(name: str) -> list[str]:
    """Folders and file in a member's name, without what would lead out of the archive."""
    return [part for part in PurePosixPath(name).parts if part not in ("/", "//", "..")] or ["."]


def _refuse_folder(name: str) -> str | None:
    """Why no file of a folder of this name is read; `datasets` passes over the same."""
    if name.startswith(("__", ".")):
        return "hidden" if name.startswith(".") else "a folder whose name begins with two underscores"
    return None


def _refuse_file(name: str) -> str | None:
    """Why a file of this name is not data of the folder that it lies in."""
    if name.startswith("."):
        return "hidden"
    suffix, _ = split_suffixes(name)
    if CARD.fullmatch(name) and (suffix in TEXTS or suffix not in SUFFIXES):
        return "a card, licence or notice; name the file itself to read it"
    if name in (*FILES_TO_IGNORE, "state.json") or INDEX.fullmatch(name):
        return "describes data and has none; name the file itself to read it"
    return refuse_name(name)


def find_splits(names: list[str]) -> dict[str, str | None]:
    """The split of each file by its path below the folder: a shard's, else by words; None for neither."""
    return {name: match[1] if (match := SHARD.fullmatch(name)) else _split_word(name) for name in names}


def _split_word(name: str) -> str | None:
    """The split by the innermost folder that names one, else by the first such word of the file's name."""
    *folders, file = name.split("/")
    words = filter(None, map(SPLIT_WORD.search, (*folders[::-1], file)))
    return next((WORDS[match[1].lower()] for match in words), None)


def _find_split(splits: dict[str, str | None], split: str, behind: str, named_by_card: bool) -> str | None:
    """The split that is meant, as the files have it: None for those without one. Raises BadInput for none."""
    known = [one for one in dict.fromkeys(splits.values()) if one]
    wanted = split if split in known else WORDS.get(split.lower(), split) or "train"
    if wanted in known:
        return wanted
    if None in splits.values() and not named_by_card and (
            not known and wanted == "train" or not split and not any("train" in one for one in known)):
        return None
    path = behind.rpartition("#")[0]
    raise file_error(path, f"it has the splits {', '.join(known) or '(none)'}; name one as "
                     f"{behind}{known[0] if known else ALL}, or {path}#{ALL} for every file")


def find_missing(names: list[str], only: set[str] = frozenset()) -> list[str]:
    """The files that lack beside others by their numbers, as `data/train-00003-of-00005`.

    Numbers begin at 0, or at 1 where there is the last of these. A file that is alone, and in `only`, lacks
    none: one part of a large set is named on purpose.
    """
    found = defaultdict(dict)
    for name in names:
        if match := NUMBERED.fullmatch(name):
            found[match[1], match[3]][int(match[2])] = name
    missing = []
    for (before, total), files in found.items():
        first = int(int(total) in files and 0 not in files)
        if len(files) > 1 or not only.issuperset(files.values()):
            missing += [f"{before}{number:0{len(total)}}-of-{total}"
                        for number in range(first, first + min(int(total), MOST_NUMBERED))
                        if number not in files]
    return missing


def find_probe(wanted: str, splits: list[str]) -> str | None:
    """The split to probe a training split with: the validation of the same name, else the test; or None."""
    if "train" not in wanted:
        return None
    return next((split for word in PROBES if (split := wanted.replace("train", word)) in splits), None)
