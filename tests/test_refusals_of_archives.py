"""Bad archives, each with the line that ``unzip`` must end with.

A row of the tables: what is bad, the bad thing, and a regular expression for the whole line, where `…` stands
for anything. Nothing bad may leave output behind.
"""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from receiptbert import archive
from tests.projects import CSV, make_zip, refuses, set_params


def damaged(path: Path) -> None:
    content = bytearray(make_zip(path, {"data.csv": CSV * 1000}).read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)


def encrypted(path: Path) -> None:
    content = bytearray(make_zip(path, {"data.csv": CSV}).read_bytes())
    content[6] |= 1  # the flag in the local header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the central directory
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(make_zip(path, {"data.csv": CSV * 1000}).read_bytes()[:-40])


def truncated_and_not_compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("data.csv", CSV)
    path.write_bytes(path.read_bytes()[:-40])


def unknown_compression(path: Path) -> None:
    content = bytearray(make_zip(path, {"data.csv": CSV}).read_bytes())
    content[8] = content[content.index(b"PK\x01\x02") + 10] = 97
    path.write_bytes(content)


def of_a_newer_version(path: Path) -> None:
    content = bytearray(make_zip(path, {"data.csv": CSV}).read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99
    path.write_bytes(content)


def of(*names: str, content: str = CSV) -> Callable[[Path], Any]:
    """An archive with these members."""
    return lambda path: make_zip(path, dict.fromkeys(names, content))


def bytes_of(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


OUTSIDE = "points outside the archive; create it again"
WHOLE = "is not a complete zip archive"
ARCHIVES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("missing", lambda path: None, "in.zip not found; set data.archive to a zip with your CSV"),  # noqa: ARG005
    ("a folder", Path.mkdir, "in.zip is not a file; set data.archive to a zip with your CSV"),
    ("a pipe", os.mkfifo, "in.zip is not a file; set data.archive to a zip with your CSV"),
    ("empty file", bytes_of(b""), f"in.zip {WHOLE} (File is not a zip file); make or download it again"),
    (
        "the CSV itself",
        bytes_of(CSV.encode()),
        f"in.zip {WHOLE} (…); it seems to be the CSV itself; put the CSV …",
    ),
    (
        "the CSV itself, of Excel",
        bytes_of(b"\xef\xbb\xbf" + CSV.replace("text,", '"text";').encode()),
        f"in.zip {WHOLE} (…); it seems to be the CSV itself; put the CSV …",
    ),
    ("Parquet", bytes_of(b"PAR1\x15\x04"), f"in.zip {WHOLE} (…); it seems to be Parquet; put the CSV …"),
    (
        "gzip",
        bytes_of(b"\x1f\x8b\x08\x00"),
        f"in.zip {WHOLE} (…); it seems to be gzip; put the CSV into a zip",
    ),
    (
        "7z",
        bytes_of(b"7z\xbc\xaf\x27\x1c\x00"),
        f"in.zip {WHOLE} (…); it seems to be 7z; put the CSV into a zip",
    ),
    ("truncated", truncated, f"in.zip {WHOLE} (File is not a zip file); make or download it again"),
    ("truncated, not compressed", truncated_and_not_compressed, f"in.zip {WHOLE} (…); make or download …"),
    ("a byte changed", damaged, f"in.zip {WHOLE} (…); make or download it again"),
    ("encrypted", encrypted, "in.zip: data.csv is encrypted; make an archive without a password"),
    (
        "unknown compression",
        unknown_compression,
        "in.zip: data.csv is not compressed by plain deflate; create it again",
    ),
    (
        "a newer version",
        of_a_newer_version,
        "in.zip: zip file version 9.9; create it again with plain deflate",
    ),
    ("no members", of(), "in.zip holds no CSV; put one CSV with the columns text,label,split into it"),
    (
        "nested",
        of("inner.zip"),
        "in.zip holds no CSV but inner.zip, which is neither unpacked nor converted; put one CSV …",
    ),
    (
        "a workbook",
        of("data.xlsx"),
        "in.zip holds no CSV but data.xlsx, which is neither unpacked nor converted; put one CSV …",
    ),
    (
        "a table that is no CSV",
        of("in/lines.txt"),
        "in.zip holds no CSV but in/lines.txt, which is neither …",
    ),
    ("two CSVs", of("a.csv", "b.csv"), "in.zip holds 2 data CSVs (a.csv, b.csv); put all rows into one; …"),
    (
        "many CSVs",
        of(*map("{}.csv".format, range(9))),
        "in.zip holds 9 data CSVs (0.csv, 1.csv, 2.csv, ...); …",
    ),
    (
        "two categories.csv",
        of("x.csv", "a/categories.csv", "categories.csv"),
        "in.zip holds 2 categories.csv (…); …",
    ),
    ("a workbook", of("xl/workbook.xml"), "in.zip is a spreadsheet; save it as CSV, and put that into a zip"),
    ("only categories.csv", of("categories.csv"), "in.zip holds no CSV; put one CSV …"),
    (
        "huge ratio",
        of("a.csv", content="0" * 9_000_000),
        "in.zip: a.csv expands to more than 1,048,576 bytes from …; create it again, without compression",
    ),
    ("a path upwards", of("../evil.csv"), f"in.zip: ../evil.csv {OUTSIDE}"),
    ("a path upwards, of Windows", of("..\\evil.csv"), f"in.zip: …evil.csv {OUTSIDE}"),
    ("an absolute path", of("/evil.csv"), f"in.zip: /evil.csv {OUTSIDE}"),
    ("a path down and up", of("a/../../evil.csv"), f"in.zip: a/../../evil.csv {OUTSIDE}"),
    (
        "a line break in a name",
        of("a\nb.csv", "c.csv"),
        r"in.zip holds 2 data CSVs (a\nb.csv, c.csv); put all rows into one; unlabelled ones have the split unsupervised",
    ),
]


@pytest.mark.parametrize(("make", "expected"), [pytest.param(*row[1:], id=row[0]) for row in ARCHIVES])
def test_archives(
    bare_project: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any], expected: str
) -> None:
    monkeypatch.setattr("receiptbert.archive.HARMLESS_BYTES", 2**20)
    make(bare_project / "in.zip")
    before = sorted(bare_project.rglob("*"))
    refuses("unzip", bare_project, expected)
    assert [path for path in bare_project.rglob("*") if path not in before] in ([], [bare_project / "data"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("receipts.csv", f"receipts.csv {WHOLE} (…); it seems to be the CSV itself; put the CSV into a zip"),
        ("receipts.csv/in.zip", "receipts.csv/in.zip not found; set data.archive to a zip with your CSV"),
    ],
)
def test_other_names_of_archives(bare_project: Path, name: str, expected: str) -> None:
    (bare_project / "receipts.csv").write_bytes(CSV.encode("utf-16"))
    set_params(bare_project, {"data.archive": name})
    refuses("unzip", bare_project, expected)


@pytest.mark.parametrize(
    "path", ["data/raw/in.zip", "data/raw/deep/in.zip", "data/../data/raw/in.zip", "link/in.zip"]
)
def test_an_archive_in_the_folder_that_is_replaced_stays(bare_project: Path, path: str) -> None:
    (bare_project / "data/raw/deep").mkdir(parents=True)
    (bare_project / "link").symlink_to("data/raw")
    make_zip(bare_project / path, {"a.csv": CSV})
    for name in (path, str(bare_project / path)):
        set_params(bare_project, {"data.archive": name})
        refuses(
            "unzip", bare_project, f"{name} is in data/raw, which this stage replaces; move it, to data/ say"
        )
    assert (bare_project / path).exists()


def test_size_is_capped_by_what_comes_out(bare_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    make_zip(bare_project / "in.zip", {"a.csv": CSV * 1000})
    refuses("unzip", bare_project, "in.zip: a.csv expands to more than 1,000 bytes…")
