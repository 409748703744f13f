import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from receiptbert import archive
from receiptbert.archive import extract_corpus
from receiptbert.errors import UserError

CSV = "text,label,split\nmilk,1,train\n"


def make_zip(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def written(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_one_csv_under_any_name_and_categories(tmp_path: Path) -> None:
    members = {"deep/Receipts 2026.CSV": CSV, "deep/categories.csv": "label,name\n1,Dairy\n"}
    extract_corpus(make_zip(tmp_path / "a.zip", members), tmp_path / "raw")
    assert written(tmp_path / "raw") == {"data.csv": CSV, "categories.csv": "label,name\n1,Dairy\n"}


def test_junk_is_ignored(tmp_path: Path) -> None:
    junk = {"__MACOSX/._data.csv": "x", ".hidden.csv": "x", "readme.txt": "x", ".git/data.csv": "x"}
    extract_corpus(make_zip(tmp_path / "a.zip", junk | {"data.csv": CSV}), tmp_path / "raw")
    assert written(tmp_path / "raw") == {"data.csv": CSV}


@pytest.mark.parametrize("name", ["../evil.csv", "/evil.csv", "a/../../evil.csv"])
def test_nothing_is_written_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="would lead outside"):
        extract_corpus(make_zip(tmp_path / "a.zip", {"data.csv": CSV, name: CSV}), tmp_path / "in" / "raw")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.zip"]


def test_a_link_is_written_as_a_plain_file(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("data.csv")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr(link, "/etc/passwd")
    extract_corpus(tmp_path / "a.zip", tmp_path / "raw")
    assert not (tmp_path / "raw" / "data.csv").is_symlink()


def damaged(path: Path) -> Path:
    make_zip(path, {"data.csv": CSV * 1000})
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    return path


def encrypted(path: Path) -> Path:
    make_zip(path, {"data.csv": CSV})
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag in the local header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the central directory
    path.write_bytes(content)
    return path


def truncated(path: Path) -> Path:
    make_zip(path, {"data.csv": CSV * 1000})
    path.write_bytes(path.read_bytes()[:-40])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "not found"),
        (lambda path: path.mkdir() or path, "is a folder"),
        (lambda path: path.write_text(CSV) and path, "is not a whole zip archive"),
        (truncated, "is not a whole zip archive"),
        (damaged, "is not a whole zip archive"),
        (encrypted, "encrypted"),
        (lambda path: make_zip(path, {}), "holds no CSV"),
        (lambda path: make_zip(path, {"inner.zip": "x"}), "holds no CSV"),
        (lambda path: make_zip(path, {"a.csv": CSV, "b.csv": CSV}), r"2 data CSVs \(a.csv, b.csv\)"),
        (lambda path: make_zip(path, {"a.csv": "0" * 9_000_000}), "unfolds to more than"),
    ],
)
def test_bad_archives_are_refused_and_leave_nothing(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        extract_corpus(make(tmp_path / "a.zip"), tmp_path / "raw")
    assert not (tmp_path / "raw").exists() or written(tmp_path / "raw") == {}


def test_size_is_capped_by_what_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="1,000 bytes"):
        extract_corpus(make_zip(tmp_path / "a.zip", {"a.csv": CSV * 1000}), tmp_path / "raw")
