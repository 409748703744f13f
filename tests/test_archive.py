import errno
import stat
import zipfile
from pathlib import Path

import pytest

from receiptbert import archive
from receiptbert.archive import extract_corpus
from receiptbert.errors import UserError
from tests.conftest import ROOT
from tests.projects import make_zip

CSV = "text,label,split\nmilk,1,train\n"


def written(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_one_csv_under_any_name_and_categories(tmp_path: Path) -> None:
    members = {"deep/Receipts 2026.CSV": CSV, "deep/categories.csv": "label,name\n1,Dairy\n"}
    extract_corpus(make_zip(tmp_path / "a.zip", members), tmp_path / "raw")
    assert written(tmp_path / "raw") == {"data.csv": CSV, "categories.csv": "label,name\n1,Dairy\n"}


def test_members_that_an_old_tool_of_windows_named(tmp_path: Path) -> None:
    members = {"deep\\data.csv": CSV, "deep\\categories.csv": "label,name\n1,Dairy\n"}
    extract_corpus(make_zip(tmp_path / "a.zip", members | {".git\\x.csv": "x"}), tmp_path / "raw")
    assert written(tmp_path / "raw") == {"data.csv": CSV, "categories.csv": "label,name\n1,Dairy\n"}


def test_no_corpus_is_taken_for_a_bomb(tmp_path: Path) -> None:
    """The sample, and a far more repetitive one of some MiB."""
    extract_corpus(ROOT / "data/sample.zip", tmp_path / "sample")
    with zipfile.ZipFile(ROOT / "data/sample.zip") as sample:
        assert (tmp_path / "sample/data.csv").read_bytes() == sample.read("data.csv")
    rows = "".join(f"milk {number // 300},1,train\n" for number in range(200_000))  # sorted
    path = make_zip(tmp_path / "a.zip", {"data.csv": CSV + rows})
    assert len(rows) / path.stat().st_size > archive.MAX_RATIO
    extract_corpus(path, tmp_path / "raw")
    assert (tmp_path / "raw/data.csv").read_text() == CSV + rows
    assert archive.MAX_BYTES > 2 * 2**30  # three million lines are a tenth of that


def test_junk_is_ignored(tmp_path: Path) -> None:
    junk = {"__MACOSX/._data.csv": "x", ".hidden.csv": "x", "readme.txt": "x", ".git/data.csv": "x"}
    extract_corpus(make_zip(tmp_path / "a.zip", junk | {"data.csv": CSV}), tmp_path / "raw")
    assert written(tmp_path / "raw") == {"data.csv": CSV}


def test_a_folder_that_is_called_like_a_csv_is_none(tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {"receipts.csv/": "", "receipts.csv/data.csv": CSV}
    extract_corpus(make_zip(tmp_path / "a.zip", members), tmp_path / "raw")
    assert written(tmp_path / "raw") == {"data.csv": CSV}


def test_a_link_is_written_as_a_plain_file(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("data.csv")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr(link, "/etc/passwd")
    extract_corpus(tmp_path / "a.zip", tmp_path / "raw")
    assert not (tmp_path / "raw" / "data.csv").is_symlink()
    assert written(tmp_path / "raw") == {"data.csv": "/etc/passwd"}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_bound_are_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as opened:
        opened.writestr("data.csv", CSV)
    with pytest.raises(UserError, match=r"data\.csv is not compressed by plain deflate; create it again"):
        extract_corpus(tmp_path / "a.zip", tmp_path / "raw")


def test_an_archive_may_not_claim_that_its_members_are_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the bytes that come out of them seem fewer in proportion."""
    for size in ("HARMLESS_BYTES", "BYTES_AT_ONCE"):
        monkeypatch.setattr(f"receiptbert.archive.{size}", 1000)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("data.csv", "a" * 10_000_000)
    content = path.read_bytes()
    directory, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    claimed, padding = (1_000_000).to_bytes(4, "little"), bytes(5_000)  # not to run into the archive's end
    place = (directory + len(padding)).to_bytes(4, "little")
    member, last = content[directory:end], content[end:]
    parts = [content[:directory], padding, member[:20], claimed, member[24:], last[:16], place, last[20:]]
    path.write_bytes(b"".join(parts))
    # Newer versions of Python see that the member would overlap with the archive's directory.
    with pytest.raises(UserError, match=r"expands to more than|Overlapped"):
        extract_corpus(path, tmp_path / "raw")


def test_an_archive_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    path = make_zip(tmp_path / "a.zip", {"data.csv": CSV})
    monkeypatch.setattr(zipfile.ZipExtFile, "read", fail)
    with pytest.raises(OSError, match="Input/output error") as raised:
        extract_corpus(path, tmp_path / "raw")
    assert raised.value.filename == str(path)
