"""A private OpenSSH server on 127.0.0.1, for benchmarks/remotes.py."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from project import run
from receiptbert.errors import UserError

SERVER_SECONDS = 10  # in which sshd must answer


def find_sshd() -> str:
    """The path of ``sshd``, if all that a remote over SSH needs is installed.

    Raises:
        UserError: ``dvc-ssh`` or ``sshd`` is missing.
    """
    if importlib.util.find_spec("dvc_ssh") is None:
        raise UserError("dvc-ssh is not installed: pip install -e '.[ssh]', or try --only cache,folder")
    places = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/usr/local/sbin"
    sshd = shutil.which("sshd", path=places)
    if sshd is None:
        raise UserError(
            "sshd is not installed: apt install openssh-server, or what your system calls OpenSSH's server; "
            "or try --only cache,folder"
        )
    return sshd  # absolute, as sshd itself demands


def openssh_version() -> str:
    """The version of the OpenSSH that is installed."""
    printed = subprocess.run(["ssh", "-V"], capture_output=True, text=True).stderr
    return printed.split(",")[0].removeprefix("OpenSSH_")


def user_name() -> str:
    """The name of the user that this process runs as, whatever LOGNAME says."""
    return pwd.getpwuid(os.getuid()).pw_name


def sshd_config(folder: Path, port: int) -> str:
    """Settings of a server that any user may run; the key in ``folder`` gives access to files only."""
    return f"""\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
AuthenticationMethods publickey
StrictModes no
UsePAM no
PidFile none
LogLevel INFO
Subsystem sftp internal-sftp
ForceCommand internal-sftp
"""


@contextlib.contextmanager
def ssh_server(sshd: str, folder: Path) -> Iterator[int]:
    """Run a server on 127.0.0.1 while the block lasts; yields its port.

    Args:
        sshd: path of the program.
        folder: to create, for the keys ``host_key`` and ``key``, the settings and the log.

    Raises:
        UserError: if the server ends or does not answer, with the last line of its log.
        SystemExit: if a command of the block failed, with the whole log.
    """
    folder.mkdir(mode=0o700)
    for name in ("host_key", "key"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name], folder)
    with socket.create_server(("127.0.0.1", 0)) as place:
        port: int = place.getsockname()[1]  # free, and unlikely to be taken before sshd starts
    (folder / "config").write_text(sshd_config(folder, port))
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "config")], stderr=log)
    try:
        end = time.monotonic() + SERVER_SECONDS
        while not answers(port):
            if server.poll() is not None or time.monotonic() > end:
                lines = (folder / "log").read_text().splitlines() or ["it said nothing"]
                raise UserError(f"{sshd} does not answer: {lines[-1]}")
            time.sleep(0.05)
        yield port
    except SystemExit as failed:
        sys.exit(f"{failed}\nThe server said:\n{(folder / 'log').read_text()}")
    finally:
        server.terminate()
        server.wait()


def answers(port: int) -> bool:
    """Whether an SSH server greets on the port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
