"""What the documentation says one can type works as it stands."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import common
from receiptbert import cli
from receiptbert.params import load_params
from tests.conftest import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXPERIMENTS = sorted(
    {
        command
        for path in DOCUMENTS
        for command in re.findall(r"dvc exp run ([^`|\n]*-S [^`|\n]*)", path.read_text())
    }
)


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs/reading.md"], ids=lambda path: path.name)
def test_snippets_of_python_run(
    tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    shutil.copytree(tiny_project / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    if "receipts.onnx" in path.read_text():
        cli.main(["export", "--onnx", "receipts.onnx"])
    snippets = re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)
    assert snippets
    for snippet in snippets:
        names: dict[str, Any] = {}
        exec(compile(snippet, path.name, "exec"), names)


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_settings_of_experiments_are_such(command: str, tmp_path: Path) -> None:
    for setting in re.findall(r"-S '?([^\s']+)", command):
        key, _, values = setting.partition("=")
        for value in values.split(","):
            common.write_params(tmp_path, [f"{key}={value}"])
            load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert link.startswith("https://") or (path.parent / link).exists(), link
