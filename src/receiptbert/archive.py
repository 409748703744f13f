"""Take the corpus out of an archive that we do not trust."""

import lzma
import os
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from receiptbert.errors import UserError

# Far above any real corpus (30 million receipt lines are 2 GiB), far below a full disk.
MAX_BYTES = 8 * 1024**3
# Receipt lines shrink 3 to 10 times; an archive that unfolds a hundredfold is no corpus but a bomb.
MAX_RATIO = 100
CHUNK = 1024**2

DATA_NAME = "data.csv"
CATEGORIES_NAME = "categories.csv"


def extract_corpus(archive: Path, folder: Path) -> None:
    """Write the archive's one CSV as ``folder/data.csv`` and its ``categories.csv``, if any, beside it.

    Only those two members are read, whatever their folder in the archive; the names under which they
    are written are ours, so that no member's name can lead outside ``folder``. Members that systems add
    (``__MACOSX/``, hidden files) and those that are no CSV are ignored. What is written is streamed,
    its size capped by what comes out, not by what the archive's headers claim.

    Raises:
        UserError: no such file, not a zip, damaged, encrypted, none or several CSVs, too large.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            data, categories = _choose_members(archive, opened)
            folder.mkdir(parents=True, exist_ok=True)
            _copy_member(archive, opened, data, folder / DATA_NAME)
            (folder / CATEGORIES_NAME).unlink(missing_ok=True)  # of an archive before
            if categories is not None:
                _copy_member(archive, opened, categories, folder / CATEGORIES_NAME)
    except FileNotFoundError:
        raise UserError(f"{archive} not found; set data.archive to a zip with your CSV") from None
    except IsADirectoryError:
        raise UserError(f"{archive} is a folder; set data.archive to a zip with your CSV") from None
    except PermissionError as error:
        raise UserError(f"{error.filename}: {error.strerror}; change its permissions") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise UserError(
            f"{archive} is not a whole zip archive ({error}); make or download it again"
        ) from None
    except NotImplementedError as error:  # how zipfile names a compression method that it does not have
        raise UserError(f"{archive}: {error}; use plain deflate") from None


def _choose_members(archive: Path, opened: zipfile.ZipFile) -> tuple[zipfile.ZipInfo, zipfile.ZipInfo | None]:
    """The data CSV and the categories CSV among the members."""
    for member in opened.infolist():
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{archive}: {member.filename} would lead outside; make the archive anew")
    tables = [member for member in opened.infolist() if _is_table(member.filename)]
    categories = [member for member in tables if _base_name(member) == CATEGORIES_NAME]
    data = [member for member in tables if _base_name(member) != CATEGORIES_NAME]
    if not data:
        raise UserError(f"{archive} holds no CSV; put one CSV with the columns text,label,split into it")
    for kind, members in (("data CSVs", data), (CATEGORIES_NAME, categories)):
        if len(members) > 1:
            names = ", ".join(member.filename for member in members)
            raise UserError(f"{archive} holds {len(members)} {kind} ({names}); leave one")
    return data[0], categories[0] if categories else None


def _base_name(member: zipfile.ZipInfo) -> str:
    return PurePosixPath(member.filename).name.lower()


def _is_table(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() == ".csv" and not hidden and not name.endswith("/")


def _copy_member(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Stream one member to ``target``, which appears under its name only when it is whole."""
    if member.flag_bits & 0x1:
        raise UserError(f"{archive}: {member.filename} is encrypted; make an archive without a password")
    partial = target.with_name(target.name + ".part")
    try:
        with opened.open(member) as source, partial.open("wb") as sink:
            _copy_capped(f"{archive}: {member.filename}", source, sink, member.compress_size)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _copy_capped(what: str, source: IO[bytes], sink: IO[bytes], compressed: int) -> None:
    limit = min(MAX_BYTES, CHUNK + compressed * MAX_RATIO)
    written = 0
    while chunk := source.read(CHUNK):
        written += len(chunk)
        if written > limit:
            raise UserError(
                f"{what} unfolds to more than {limit:,} bytes from {compressed:,}; "
                f"the limits are {MAX_RATIO} times and {MAX_BYTES:,} bytes"
            )
        sink.write(chunk)
