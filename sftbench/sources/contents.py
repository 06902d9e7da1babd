"""The bytes of a file, of a compressed one or of a member of a zip archive; nothing is unpacked to disk."""

import bz2
import contextlib
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pyarrow as pa

from ..errors import BadInput, file_error
from .names import ARCHIVE, COMPRESSED

# More than this out of a compressed file is no data: text shrinks to a fifth, rows of a template to a 50th.
EXPANSION, ALWAYS_ALLOWED = 200, 64 * 2**20  # times its size; bytes
LONGEST_LINE = 256 * 2**20  # bytes without a line's end; a line is in memory
DAMAGE = (EOFError, OSError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException)
DECOMPRESSORS = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream), ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile,
    ".zst": lambda stream: pa.CompressedInputStream(stream, "zstd"),
}


@dataclass(frozen=True)
class Content:
    """What can be read as one file: `name` for messages, `path` on disk, `member` of the archive there.

    `relative` is its name below what the source names; it identifies a document.
    """

    name: str
    relative: str
    path: Path
    member: zipfile.ZipInfo | None = None

    @property
    def suffix(self) -> str:
        """The ending that says what is inside, without that of a compression: `.jsonl` of `a.jsonl.gz`."""
        return split_suffixes(self.name)[0]

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Its bytes, decompressed; raises BadInput for what is damaged, encrypted or no data."""
        compressions = split_suffixes(self.name)[1]
        if not (self.member or compressions):
            with open(self.path, "rb") as file:
                yield file
            return
        with contextlib.ExitStack() as stack:
            with _damage_named(self.name):
                if self.member:
                    archive = stack.enter_context(zipfile.ZipFile(self.path))
                    file, size = stack.enter_context(archive.open(self.member)), self.member.compress_size
                else:
                    file, size = stack.enter_context(open(self.path, "rb")), self.path.stat().st_size
                for compression in compressions:
                    file = stack.enter_context(DECOMPRESSORS[compression](file))
            yield stack.enter_context(io.BufferedReader(_Guarded(file, self.name, size), 2**17))

    def read(self) -> bytes:
        """All of its bytes."""
        with self.open() as file:
            return file.read()


def split_suffixes(name: str) -> tuple[str, list[str]]:
    """The ending of a name without compressions, and these from the outermost: `.jsonl`, [`.gz`]."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    compressions = []
    while suffixes and suffixes[-1] in COMPRESSED:
        compressions.append(suffixes.pop())
    return suffixes[-1] if suffixes else "", compressions


def list_members(path: Path) -> list[zipfile.ZipInfo]:
    """The files of a zip archive; raises BadInput where it is damaged or encrypted."""
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
    if any(member.flag_bits & 1 for member in members):
        raise file_error(path, "encrypted; unpack it, and name the folder")
    return members


def is_archive(name: str) -> bool:
    """Whether a name is that of a zip archive."""
    return name.lower().endswith(ARCHIVE)


def check_expansion(name: str, expanded: int, size: int) -> None:
    """Raise BadInput where a compressed file of this size has expanded to more bytes than any data would."""
    if expanded > max(ALWAYS_ALLOWED, EXPANSION * size):
        raise file_error(name, f"expands to more than {EXPANSION} times its size, as no data does; unpack it "
                         "yourself if it is to be read")


class _Guarded(io.RawIOBase):
    """A decompressed stream that ends with BadInput where it is damaged, or larger than any data is."""

    def __init__(self, stream, name: str, size: int):
        self.stream, self.name, self.size = stream, name, size
        self.total, self.line = 0, 0

    def readable(self) -> bool:
        """True; only read."""
        return True

    def seekable(self) -> bool:
        """Whether what is decompressed can be read again from elsewhere."""
        return self.stream.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; backwards, all before it is decompressed again."""
        with _damage_named(self.name):
            return self.stream.seek(offset, whence)

    def tell(self) -> int:
        """The place in what is decompressed."""
        return self.stream.tell()

    def readinto(self, buffer) -> int:
        """Fill a buffer; raises BadInput."""
        with _damage_named(self.name):
            data = self.stream.read(len(buffer))
        buffer[:len(data)] = data
        end = data.rfind(b"\n")
        self.total += len(data)
        self.line = len(data) - end - 1 + (self.line if end < 0 else 0)
        check_expansion(self.name, self.total, self.size)
        if self.line > LONGEST_LINE:
            raise file_error(self.name, f"has a line of more than {LONGEST_LINE // 2**20} MiB; unpack it "
                             "yourself if it is to be read")
        return len(data)


@contextlib.contextmanager
def _damage_named(name: Path | str):
    """Turn the errors of the decompressors into BadInput with the file's name."""
    try:
        yield
    except BadInput:
        raise
    except DAMAGE as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise file_error(name, f"damaged, or not what its ending says: {why}; fetch it again") from None
