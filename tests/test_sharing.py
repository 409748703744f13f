"""docs/sharing.md and the benchmark that tries it, without a server: what either could get wrong."""

import contextlib
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.cli import main as dvc

import common
import openssh
import project
import remotes
from receiptbert.errors import UserError
from tests.conftest import ROOT

DOC = (ROOT / "docs/sharing.md").read_text()


def commands(text: str) -> list[list[str]]:
    """DVC's commands in blocks of code and between backticks, without the word dvc."""
    lines = [*re.findall(r"^ *dvc (.+)$", text, re.MULTILINE), *re.findall(r"`dvc ([^`]+)`", text)]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("section", [part for part in DOC.split("\n## ") if part.startswith("A ")])
def test_dvc_takes_the_settings_of_each_way(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dvc(["init", "--no-scm", "--quiet"]) == 0
    settings = [command for command in commands(section) if command[0] in ("remote", "cache", "config")]
    assert settings
    assert [dvc(command) for command in settings] == [0] * len(settings)
    committed = (tmp_path / ".dvc/config").read_text()
    assert not re.search("user|keyfile|pass|secret|access_key|dvc-cache", committed)


def test_the_extras_that_are_named_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for text in (DOC, *(Path(module.__file__).read_text() for module in (remotes, openssh))):
        assert set(re.findall(r"'\.\[(\w+)\]'", text)) <= extras.keys()


# --- The benchmark, with a git and a DVC that copy files ---


class Team:
    """Stands in for git and DVC; ``fault`` is what goes wrong in the clone of the folder's remote."""

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self.commands: list[list[str]] = []
        self.homes: set[str] = set()

    def make_project(self, folder: Path, *_: object) -> None:
        (folder / "models").mkdir(parents=True)
        (folder / "models/weights").write_bytes(b"12345")
        (folder / "dvc.lock").write_text("lock")

    def run(self, command: list[str], folder: Path, variables: dict[str, str] | None = None) -> str:
        self.commands.append(command)
        self.homes |= {variables["HOME"]} if variables else set()
        bad = self._fault if folder.parent.name == "folder" else ""
        if command[:2] == ["git", "clone"]:
            shutil.copytree(folder, command[-1])
        elif command == ["dvc", "push"]:
            self._store().mkdir()
            (self._store() / "object").write_bytes(b"12345")
        elif command == ["dvc", "pull"]:
            shutil.copytree(self._store(), folder / ".dvc/cache")
            if bad == "bytes":
                (folder / "models/weights").write_bytes(b"54321")
        elif command == ["dvc", "repro"]:
            ran = common.STAGES if folder.parent.name == "author" else ["finetune"] if bad == "stage" else []
            return "".join(f"Running stage '{stage}':\n" for stage in ran)
        elif command == ["dvc", "status"]:
            return "models changed" if bad == "status" else "Data and pipelines are up to date."
        elif command[:2] == ["git", "status"] and bad == "metrics":
            return " M metrics/test.json\n"
        return ""

    def _store(self) -> Path:
        url = next(
            command[-1] for command in reversed(self.commands) if command[:3] == ["dvc", "remote", "add"]
        )
        return Path(url.removeprefix("ssh://127.0.0.1"))


def share(team: Team, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, remotes.Figures]:
    """Run the benchmark with a stand-in; its figures."""

    @contextlib.contextmanager
    def server(sshd: str, _: Path) -> Iterator[int]:
        assert sshd == "an sshd"
        yield 2222

    monkeypatch.setattr(remotes, "run", team.run)
    monkeypatch.setattr(project, "run", team.run)
    monkeypatch.setattr(remotes, "make_project", team.make_project)
    monkeypatch.setattr(remotes, "ssh_server", server)
    monkeypatch.setattr(remotes, "find_sshd", lambda: "an sshd")
    monkeypatch.setattr(remotes, "openssh_version", lambda: "9")
    monkeypatch.setattr(remotes, "version", lambda name: f"the version of {name}")
    monkeypatch.setattr("sys.argv", ["remotes.py", "--json", str(folder / "figures.json")])
    try:
        remotes.main()
    finally:
        figures: dict[str, remotes.Figures] = json.loads((folder / "figures.json").read_text())
    return figures


def test_three_ways_to_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team("")
    figures = share(team, tmp_path, monkeypatch)
    assert [figures[name]["pushed_bytes"] for name in ("cache", "folder", "ssh")] == [0, 5, 5]
    assert [figures[name]["pulled_files"] for name in ("cache", "folder", "ssh")] == [0, 1, 1]
    assert len(team.homes) == 4  # the author's and each clone's
    personal = [command for command in team.commands if {"user", "port", "keyfile"} & set(command)]
    assert len(personal) == 2 * 3
    assert all("--local" in command for command in personal)
    assert ["dvc", "add", "data/corpus.zip"] in team.commands
    assert figures["tools"].keys() == {"dvc", "dvc_ssh", "openssh"}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("stage", r"^folder: stages_run \['finetune'\]$"),
        ("status", r"^folder: dvc status finds changes in a fresh clone$"),
        ("bytes", r"^folder: different_files \['models/weights'\]$"),
        ("metrics", r"^folder: to_commit \[' M metrics/test.json'\]$"),
    ],
)
def test_a_clone_that_is_not_as_the_author_left_it_fails(
    fault: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=message):
        share(Team(fault), tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("dvc-ssh", "dvc-ssh is not installed: pip install -e '.[ssh]', or try --only cache,folder"),
        ("sshd", "sshd is not installed: apt install openssh-server, or "),
    ],
)
def test_what_is_missing_is_said_in_a_line(missing: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None if missing == "dvc-ssh" else "a spec")
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.setattr("sys.argv", ["remotes.py", "--only", "ssh"])
    with pytest.raises(SystemExit) as ended:
        common.run_main(remotes.main)
    assert str(ended.value).startswith(f"remotes.py: error: {line}")
    assert "\n" not in str(ended.value)


def test_a_way_that_there_is_not_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["remotes.py", "--only", "cache,smb"])
    with pytest.raises(SystemExit):
        remotes.main()
    assert "error: argument --only: 'smb' is none of cache, folder, ssh" in capsys.readouterr().err


def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssh, "run", lambda *_: "")  # ssh-keygen
    sshd = tmp_path / "sshd"
    sshd.write_text("#!/bin/sh\necho 'no hostkeys available -- exiting.' >&2\nexit 1\n")
    sshd.chmod(0o700)
    with (
        pytest.raises(UserError, match=r"sshd does not answer: no hostkeys available -- exiting\.$"),
        openssh.ssh_server(str(sshd), tmp_path / "server"),
    ):
        pass
