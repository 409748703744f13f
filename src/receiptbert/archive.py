"""Extract the corpus from an archive that we do not trust."""

import errno
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from receiptbert.decoding import kind_of
from receiptbert.errors import UserError
from receiptbert.files import naming
from receiptbert.splits import COLUMNS

# Far above any real corpus (30 million receipt lines are 2 GiB), far below a full disk.
MAX_BYTES = 8 * 1024**3
# Receipt lines compress 3 to 10 times, sorted ones more. What expands a hundredfold to a size that does harm
# is a bomb.
MAX_RATIO = 100
HARMLESS_BYTES = 1024**3
BYTES_AT_ONCE = 1024**2

DATA_NAME = "data.csv"
CATEGORIES_NAME = "categories.csv"

# What people put into the archive instead of a CSV: something compressed, or a table of another kind.
NO_CSV = {".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tar", ".tgz"}
NO_CSV |= {".tsv", ".tab", ".txt", ".jsonl", ".ndjson", ".parquet", ".pq", ".xls", ".xlsx", ".ods"}
# What a zip has that is a workbook of Excel, or a table of LibreOffice.
WORKBOOK = {"xl/workbook.xml", "content.xml"}
# What zipfile and the decompressors raise for malformed data.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    struct.error,
)


def extract_corpus(archive: Path, folder: Path) -> dict[str, str]:
    """Write the archive's one CSV as ``folder/data.csv`` and its ``categories.csv``, if any, beside it.

    Only those two members are read, whatever their folder in the archive; the names under which they
    are written are ours, so that no member's name can lead outside ``folder``; an archive in which one
    tries to is refused as a whole. Members that systems add (``__MACOSX/``, hidden files) and those that
    are no CSV are ignored. The output is streamed, its
    size capped by the bytes that come out, not by what the archive's headers claim.

    Returns:
        the name of the member behind each file that was written.

    Raises:
        UserError: no such file, not a zip, damaged, encrypted, none or several CSVs, too large, or a
            member's name leads outside.
    """
    if archive.exists() and not archive.is_file():  # a pipe, say, from which nothing may ever come
        raise UserError(f"{archive} is not a file; set data.archive to a zip with your CSV")
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _choose_members(archive, opened)
            folder.mkdir(parents=True, exist_ok=True)
            for name, member in members.items():
                _copy_member(archive, opened, member, folder / name)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{archive} not found; set data.archive to a zip with your CSV") from None
    except NotImplementedError as error:  # from zipfile: a newer version, strong encryption, patched data
        raise UserError(f"{archive}: {error}; create it again with plain deflate") from None
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # of the disk, not of the archive
        kind = _kind(archive)
        mend = f"it seems to be {kind}; put the CSV into a zip" if kind else "make or download it again"
        raise UserError(f"{archive} is not a complete zip archive ({error}); {mend}") from None
    return {name: member.filename for name, member in members.items()}


def _kind(archive: Path) -> str | None:
    """What a file that is no zip seems to be, by its first line and its name."""
    with archive.open("rb") as file:
        start = file.readline(BYTES_AT_ONCE)
    if start.startswith(b"PK"):  # a part of a zip, which may hold its CSV uncompressed
        return None
    if kind := kind_of(start):
        return kind
    is_header = all(name.encode() in start for name in COLUMNS)
    is_named_so = archive.suffix.lower() in (".csv", ".tsv")
    return "the CSV itself" if is_header or is_named_so else None


def _choose_members(archive: Path, opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The data CSV and the categories CSV, if there is one, by the names under which we write them."""
    _require_inside(archive, opened)
    tables = [member for member in opened.infolist() if _is_table(member.filename)]
    categories = [member for member in tables if _base_name(member) == CATEGORIES_NAME]
    data = [member for member in tables if _base_name(member) != CATEGORIES_NAME]
    if not data and WORKBOOK & set(opened.namelist()):
        raise UserError(f"{archive} is a spreadsheet; save it as CSV, and put that into a zip")
    if not data:
        inner = [name for name in opened.namelist() if PurePosixPath(name).suffix.lower() in NO_CSV]
        but = f" but {inner[0]}, which is neither unpacked nor converted" if inner else ""
        raise UserError(f"{archive} holds no CSV{but}; put one CSV with the columns text,label,split into it")
    mend = "put all rows into one; unlabelled ones have the split unsupervised"
    chosen = {DATA_NAME: _only(archive, data, "data CSVs", mend)}
    if categories:
        chosen[CATEGORIES_NAME] = _only(archive, categories, CATEGORIES_NAME, "keep one")
    return chosen


def _require_inside(archive: Path, opened: zipfile.ZipFile) -> None:
    for member in opened.infolist():
        path = _path(member.filename)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{archive}: {member.filename} points outside the archive; create it again")


def _only(archive: Path, members: list[zipfile.ZipInfo], kind: str, mend: str) -> zipfile.ZipInfo:
    if len(members) > 1:
        names = ", ".join(member.filename for member in members[:3])
        more = ", ..." if len(members) > 3 else ""
        raise UserError(f"{archive} holds {len(members)} {kind} ({names}{more}); {mend}")
    return members[0]


def _path(name: str) -> PurePosixPath:
    """The path of a member; old Windows tools write backslashes."""
    return PurePosixPath(name.replace("\\", "/"))


def _base_name(member: zipfile.ZipInfo) -> str:
    return _path(member.filename).name.lower()


def _is_table(name: str) -> bool:
    path = _path(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() == ".csv" and not hidden and not name.endswith("/")


def _copy_member(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Stream one member to ``target``."""
    if member.flag_bits & 0x1:
        raise UserError(f"{archive}: {member.filename} is encrypted; make an archive without a password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Of the others, zipfile unpacks a megabyte at once, however much comes out of it.
        raise UserError(f"{archive}: {member.filename} is not compressed by plain deflate; create it again")
    compressed = min(member.compress_size, archive.stat().st_size)  # the former is only claimed
    with opened.open(member) as source, target.open("wb") as sink:
        _copy_capped(archive, member.filename, source, sink, compressed)


def _copy_capped(archive: Path, name: str, source: IO[bytes], sink: IO[bytes], compressed: int) -> None:
    limit = min(MAX_BYTES, max(HARMLESS_BYTES, compressed * MAX_RATIO))
    mend = "leave out rows" if limit == MAX_BYTES else "create it again, without compression"
    written = 0
    while True:
        with naming(archive):
            chunk = source.read(BYTES_AT_ONCE)
        if not chunk:
            return
        written += len(chunk)
        if written > limit:
            raise UserError(
                f"{archive}: {name} expands to more than {limit:,} bytes from {compressed:,}; {mend}"
            )
        sink.write(chunk)
