"""Share a small project via a cache, a folder and an OpenSSH server; a fresh clone must have nothing to run.

    python benchmarks/remotes.py [--only cache,folder] [--json OUT]

The author's project, its archive tracked by ``dvc add``, is reproduced once and pushed in each way of
docs/sharing.md. Each time a fresh clone with an empty cache gets the data; then ``dvc repro`` must run no
stage, ``dvc status`` find nothing to do, and every output, metric and the lock have the author's bytes.
Author and clone have homes of their own, so that neither ``~/.ssh`` nor your settings of git and DVC matter.

The server is your own ``sshd`` on a free port of 127.0.0.1, with keys made for this run; ``pip install -e
'.[ssh]'`` brings what DVC needs for it. Root must first make the folder that the system's own sshd has:
``mkdir -p /run/sshd``.
"""

import contextlib
import re
import site
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import STAGES, argument_parser, run_main, some_of, write_result
from openssh import find_sshd, openssh_version, ssh_server, user_name
from project import SMALL_CORPUS, SMALL_SETTINGS, commit, make_project, outputs, run
from receiptbert.progress import say
from timing import seconds_of

SETTINGS = [*SMALL_SETTINGS, "finetune.teachers=0"]
# In this order: after another way, the cache would leave git nothing to commit.
WAYS = ("cache", "folder", "ssh")
COLUMNS = ("push_seconds", "pushed_files", "pushed_bytes", "pull_seconds", "pulled_files", "pulled_bytes")

Command = Sequence[str]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """How data get from one machine to another.

    Attributes:
        common: DVC commands that the author runs once; their effect is committed.
        local: those that each machine runs for itself, outside git.
        get: what brings the data into a clone.
        store: the folder that ``dvc push`` fills; None if there is nothing to push.
    """

    common: Sequence[Command]
    local: Sequence[Command]
    get: Command
    store: Path | None


class Machine:
    """As far as git and DVC can tell, a machine with one project, ``folder / "project"``."""

    def __init__(self, folder: Path) -> None:
        home = folder / "home"
        home.mkdir(parents=True)
        self.project = folder / "project"
        self.variables = {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "DVC_SITE_CACHE_DIR": str(home / "site_cache"),  # DVC remembers there what a remote has
            "PYTHONUSERBASE": site.getuserbase(),  # else `pip install --user` would be lost with the home
        }

    def run(self, command: Command) -> str:
        """What a command in the project prints; it must succeed."""
        return run(command, self.project, self.variables)

    def timed(self, command: Command) -> float:
        """Seconds that a command in the project takes."""
        return seconds_of(lambda: self.run(command))


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__, corpus=False)
    parser.add_argument("--only", type=partial(some_of, WAYS), default=",".join(WAYS), help="the ways to try")
    args = parser.parse_args()
    names = [name for name in WAYS if name in args.only]
    sshd = find_sshd() if "ssh" in names else ""
    with tempfile.TemporaryDirectory() as scratch:
        figures = share(Path(scratch), names, sshd)
    print_table(figures)
    versions = {"dvc": version("dvc")}
    if sshd:
        versions |= {"dvc_ssh": version("dvc-ssh"), "openssh": openssh_version()}
    write_result(args.json, {**figures, "tools": versions})
    if found := faults(figures):
        sys.exit("; ".join(found))


def share(scratch: Path, names: Sequence[str], sshd: str) -> dict[str, Figures]:
    """Make a project and share it in each way of ``names``; the figures of each."""
    author = Machine(scratch / "author")
    cache = cache_way(scratch / "cache")
    make_project(author.project, SMALL_CORPUS, SETTINGS, author.variables)
    say("the author's project runs its six stages")
    for command in [["dvc", "add", "data/corpus.zip"], *cache.local]:
        author.run(command)
    if (ran := stages_run(author.run(["dvc", "repro"]))) != STAGES:
        sys.exit(f"the first dvc repro ran {ran}")

    figures = {}
    for name in names:
        with contextlib.ExitStack() as stack:
            if name == "ssh":
                way = ssh_way(scratch, stack.enter_context(ssh_server(sshd, scratch / "server")))
            else:
                way = cache if name == "cache" else folder_way(scratch / "remote")
            say(f"{name}: push, fresh clone, {way.get[1]}, dvc repro")
            figures[name] = try_way(way, author, Machine(scratch / name))
    return figures


def cache_way(folder: Path) -> Way:
    """Both machines see one folder, and outputs are links into it."""
    settings = [["cache.shared", "group"], ["cache.type", "symlink"]]
    local = [["dvc", "config", "--local", *setting] for setting in settings]
    return Way([], [["dvc", "cache", "dir", "--local", str(folder)], *local], ["dvc", "checkout"], None)


def folder_way(folder: Path) -> Way:
    """A remote in a folder, as on a mounted disk."""
    return Way([["dvc", "remote", "add", "-d", "folder", str(folder)]], [], ["dvc", "pull"], folder)


def ssh_way(scratch: Path, port: int) -> Way:
    """A remote on the server of ``ssh_server``."""
    store = scratch / "ssh_remote"
    settings = {"user": user_name(), "port": str(port), "keyfile": str(scratch / "server/key")}
    local = [["dvc", "remote", "modify", "--local", "ssh", *setting] for setting in settings.items()]
    add = ["dvc", "remote", "add", "-d", "ssh", f"ssh://127.0.0.1{store}"]
    return Way([add], local, ["dvc", "pull"], store)


def try_way(way: Way, author: Machine, clone: Machine) -> Figures:
    """Push, clone, get the data, and see what there is left to do."""
    for command in [*way.common, *way.local]:
        author.run(command)
    commit(author.project, author.variables)
    push_seconds = author.timed(["dvc", "push"]) if way.store else 0.0
    pushed = weigh(way.store) if way.store else (0, 0)

    run(["git", "clone", "-q", str(author.project), str(clone.project)], author.project, clone.variables)
    for command in way.local:
        clone.run(command)
    pull_seconds = clone.timed(way.get)
    pulled = weigh(clone.project / ".dvc/cache")
    up_to_date = "up to date" in clone.run(["dvc", "status"])
    ran = stages_run(clone.run(["dvc", "repro"]))
    values = (push_seconds, *pushed, pull_seconds, *pulled)
    return {
        **dict(zip(COLUMNS, values, strict=True)),
        "stages_run": ran,
        "up_to_date": up_to_date,
        "different_files": different(outputs(author.project), outputs(clone.project)),
        "to_commit": clone.run(["git", "status", "--porcelain"]).splitlines(),
    }


def stages_run(printed: str) -> list[str]:
    """The stages that ``dvc repro`` ran, as it prints them."""
    return re.findall(r"Running stage '(\w+)'", printed)


def weigh(folder: Path) -> tuple[int, int]:
    """How many files are in ``folder``, and their bytes; 0 if it is not there."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def different(ours: dict[str, bytes], theirs: dict[str, bytes]) -> list[str]:
    """The files that one side lacks or that differ between the two."""
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def faults(figures: dict[str, Figures]) -> list[str]:
    """What is wrong, a line for each."""
    found = []
    for name, values in figures.items():
        if not values["up_to_date"]:
            found.append(f"{name}: dvc status finds changes in a fresh clone")
        for key in ("stages_run", "different_files", "to_commit"):
            if values[key]:
                found.append(f"{name}: {key} {values[key]}")
    return found


def print_table(figures: dict[str, Figures]) -> None:
    """Print a row for each way."""
    print(f"{'':6}" + "".join(f"  {column:>12}" for column in (*COLUMNS, "stages_run")))
    for name, values in figures.items():
        cells = [
            f"{values[column]:,.1f}" if "seconds" in column else f"{values[column]:,}" for column in COLUMNS
        ]
        print(f"{name:6}" + "".join(f"  {cell:>12}" for cell in (*cells, len(values["stages_run"]))))


if __name__ == "__main__":
    run_main(main)
