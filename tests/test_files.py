"""Files and folders appear whole or not at all, and on the disk before their names do."""

import errno
import os
from pathlib import Path

import pytest

from receiptbert.files import atomic
from tests.projects import contents


def test_contents_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(
        "os.fsync", lambda number: done.append(str(Path(f"/proc/self/fd/{number}").readlink()))
    )
    replace = os.replace
    monkeypatch.setattr("os.replace", lambda *names: (done.append("replace"), replace(*names)))
    with atomic(tmp_path / "models") as partial:
        (partial / "inner").mkdir(parents=True)
        (partial / "inner/weights").write_text("x")
    written = [f"{partial}{name}" for name in ("", "/inner", "/inner/weights")]
    assert sorted(done[:3]) == written
    assert done[3:] == ["replace", str(tmp_path)]


def test_copies_that_the_user_made_stay(tmp_path: Path) -> None:
    for name in ("models.old", "models.replaced", "models.bak"):
        (tmp_path / name).write_text("a copy")
    before = contents(tmp_path)
    for _ in range(2):
        with atomic(tmp_path / "models") as partial:
            partial.mkdir()
    assert contents(tmp_path) == before


def test_a_folder_ended_between_its_two_renames_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace = tmp_path / "models", os.replace

    def write(content: str) -> None:
        with atomic(path) as partial:
            partial.mkdir()
            (partial / "weights").write_text(content)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    write("old")
    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write("new")
    assert contents(tmp_path) == {"models/weights": b"old"}
    path.rename(tmp_path / ".models.replaced")  # as kill -9 in that moment leaves it
    with pytest.raises(KeyboardInterrupt):
        write("new")
    assert contents(tmp_path) == {"models/weights": b"old"}
    monkeypatch.setattr("os.replace", replace)
    write("new")
    assert contents(tmp_path) == {"models/weights": b"new"}


def test_a_folder_that_cannot_be_synced_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr("os.fsync", refuse)
    with atomic(tmp_path / "x") as partial:
        partial.write_text("whole")
    assert contents(tmp_path) == {"x": b"whole"}


def test_what_may_not_be_read_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder into which anybody may put files, but not look."""

    def refuse(path: Path, _: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("os.open", refuse)
    with atomic(tmp_path / "x") as partial:
        partial.write_text("whole")
    assert contents(tmp_path) == {"x": b"whole"}


def test_a_file_appears_whole_or_keeps_its_old_content(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for text in ("old", "new"):
        with atomic(path) as partial:
            partial.write_text(text)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text
    with pytest.raises(RuntimeError, match="half way"), atomic(path) as partial:  # noqa: PT012
        partial.write_text("half")
        raise RuntimeError("half way")
    assert contents(tmp_path) == {"new/file": b"new"}


def test_a_folder_appears_whole_and_without_files_of_before(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("a", "b"):
        with atomic(path) as partial:
            partial.mkdir()
            (partial / name).write_text(name)
    assert contents(tmp_path) == {"folder/b": b"b"}
    with pytest.raises(RuntimeError, match="half way"), atomic(path) as partial:  # noqa: PT012
        partial.mkdir()
        (partial / "c").write_text("half")
        raise RuntimeError("half way")
    assert contents(tmp_path) == {"folder/b": b"b"}


def test_a_write_protected_folder_is_refused_before_any_of_it_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "folder/inner"
    inner.mkdir(parents=True)
    (inner / "a").write_text("a")
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != inner)  # root may write anywhere
    with pytest.raises(PermissionError) as refusal, atomic(tmp_path / "folder"):
        pytest.fail("it was written")
    assert refusal.value.filename == str(inner)
    assert contents(tmp_path) == {"folder/inner/a": b"a"}


@pytest.mark.parametrize("there", [False, True], ids=["to nothing", "to a folder"])
def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path, there: bool) -> None:
    target, path = tmp_path / "elsewhere", tmp_path / "models"
    if there:
        target.mkdir()
    path.symlink_to(target)
    with atomic(path) as partial:
        partial.mkdir()
        (partial / "weights").write_text("x")
    assert not path.is_symlink()
    assert contents(path) == {"weights": b"x"}
    assert target.exists() == there
    assert {file.name for file in tmp_path.iterdir()} <= {"elsewhere", "models"}


def test_what_a_killed_run_left_is_in_nobody_s_way(tmp_path: Path) -> None:
    (tmp_path / "folder.part").mkdir()
    (tmp_path / "folder.part" / "half").write_text("half")
    with atomic(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "a").write_text("a")
    assert contents(tmp_path) == {"folder/a": b"a"}
