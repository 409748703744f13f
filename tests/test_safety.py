"""No code comes in with data, and nothing goes out or comes in over the network."""

import ast
import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
from huggingface_hub import constants

from tests.conftest import ROOT
from tests.projects import STAGES, run_here, set_params

SOURCES = sorted(path for folder in ("src", "data", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
# Modules that run code which stands in the file that they read.
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def dangers(source: str) -> list[str]:
    """Calls and imports of ``source`` by which a file could run code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in UNPICKLERS else []
        elif isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            name = ast.unparse(node.func)
            if name in ("torch.load", "load") and given.get("weights_only") != "True":
                found.append(ast.unparse(node))
            if name.endswith(("read_pickle", "unsafe_load", "yaml.load_all", "jit.load")):
                found.append(name)
            if name in ("eval", "exec"):
                found.append(name)
            loader = given.get("Loader", "")  # of PyYAML
            if loader.endswith("Loader") and "Safe" not in loader:
                found.append(ast.unparse(node))
            if name.endswith(("import_module", "__import__")) and node.args:
                found += [module for module in UNPICKLERS if repr(module) == ast.unparse(node.args[0])]
            if name in ("YAML", "yaml.YAML") and given.get("typ", "'rt'") not in ("'safe'", "'rt'"):
                found.append(ast.unparse(node))
            if (
                given.get("allow_pickle", "False") != "False"
                or given.get("trust_remote_code", "False") != "False"
            ):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "YAML(typ='unsafe')",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load_all(text)",
        "torch.jit.load(path)",
        "importlib.import_module('pickle')",
        "__import__('pickle')",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert dangers(source)


def test_no_file_is_read_that_could_run_code() -> None:
    assert ROOT / "src/receiptbert/hf_format.py" in SOURCES
    assert {str(path): found for path in SOURCES if (found := dangers(path.read_text()))} == {}


def test_no_stage_asks_the_network(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where nobody has set HF_HUB_OFFLINE."""
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> NoReturn:
        asked.append(arguments)
        raise OSError("no network in tests")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for stage in STAGES.values():
        run_here(stage, project)
    shutil.copytree(project / "models/pretrained", project / "base")
    set_params(project, {"finetune.init": "base"})
    run_here(STAGES["finetune"], project)
    assert asked == []
    # A name of the hub that is no project here is no reason to go and fetch it.
    set_params(project, {"finetune.init": "bert-base-uncased"})
    with pytest.raises(SystemExit, match=r"bert-base-uncased is not a folder"):
        run_here(STAGES["finetune"], project)
    assert asked == []
