"""Files and folders that appear under their names only when they are whole."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from receiptbert.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write a file or folder to; it becomes ``path`` if the block succeeds.

    Whatever stood at ``path`` before stays until then, and stays for good if the block raises. The contents
    are on disk before the name is: a power failure leaves the old or the new, never a half (of a folder, in
    the instant between two renames, neither: the old one is then beside it, as ``.<name>.replaced``).

    Raises:
        PermissionError: a folder stands at ``path`` that is, or in which one is, write-protected.
    """
    with _appearing(path, path.with_name(f"{path.name}.part")) as partial:
        yield partial


@contextmanager
def atomic_file(path: Path, instead: str = "") -> Iterator[Path]:
    """``atomic`` for a file that a user names: several processes may write it at once, and the last one wins.

    A file keeps its permissions. A link is replaced, not what it stands for, which may be in DVC's cache.

    Args:
        instead: what else the user may do where ``path`` is refused.

    Raises:
        UserError: ``path`` is something that no file may replace: a folder, a device, a pipe, or (as
            ``/dev/stdout``) a file that is already open; or its folder does not exist.
        PermissionError: its folder, or a file that is there, is write-protected.
    """
    target = Path(os.path.realpath(path))  # not by `resolve`, which raises for a link to itself
    parent = Path(os.path.realpath(path.parent))
    is_open = parent == Path("/dev") or parent.is_relative_to("/proc")
    if is_open or (target.exists() and not target.is_file()):
        raise UserError(f"{path} is not a file; name one{instead}")
    if not parent.is_dir():
        raise UserError(f"{path.parent} is not a folder; create it, or name another")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))
    if path.exists() and not path.is_symlink() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    with _appearing(path, path.with_name(f".{path.name}.{os.getpid()}.part")) as partial:
        if path.exists() and not path.is_symlink():
            partial.touch()  # before anything is in it that others may not read
            shutil.copymode(path, partial)
        yield partial


@contextmanager
def _appearing(path: Path, partial: Path) -> Iterator[Path]:
    """See ``atomic``; ``partial`` is the name to write to."""
    old = path.with_name(f".{path.name}.replaced")  # a name that nobody gives to a copy of their own
    with naming(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _require_removable(path)
            _remove(partial)  # of a run that was killed
            yield partial
            for file in [partial, *partial.rglob("*")]:
                _sync(file)
            if partial.is_dir() and os.path.lexists(path):  # it can replace neither a folder nor a link
                _remove(old)
                path.rename(old)
            os.replace(partial, path)
            _sync(path.parent)
        finally:
            _remove(partial)
            # Ended between the two renames, now or in an earlier run.
            if os.path.lexists(old) and not os.path.lexists(path):
                old.rename(path)
            _remove(old)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the name of the file to an ``OSError`` of the block: a failing ``write`` does not know it.

    Libraries written in Rust (safetensors, tokenizers) wrap the system's errors in exceptions of their own;
    these become an ``OSError`` again.
    """
    try:
        yield
    except UserError:  # tells all already, perhaps of another file
        raise
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    except Exception as error:
        if wrapped := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(wrapped[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _require_removable(path: Path) -> None:
    """Refuse a folder that could be renamed, but not removed when its successor is there."""
    if path.is_dir() and not path.is_symlink():
        for folder in [path, *(inner for inner in path.rglob("*") if inner.is_dir())]:
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # one that may be written to, but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot do this for folders
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
