"""What dvc.yaml says: the code and files that each stage reads, and what git tracks."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.conftest import ROOT
from tests.projects import STAGES

SPECS = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def imported_modules(stage: str) -> set[str]:
    """Files under src/ that the stage's script imports where nothing of ours is imported yet."""
    source = f"{ROOT / 'src'}{os.sep}"

    def ours() -> dict[str, ModuleType]:
        files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
        return {name: sys.modules[name] for name, file in files.items() if file.startswith(source)}

    before = ours()
    for name in before:
        del sys.modules[name]
    try:
        runpy.run_path(f"{source}{stage}.py")
        found = {str(Path(str(module.__file__)).relative_to(ROOT)) for module in ours().values()}
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)
    return found | {f"src/{stage}.py"}


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_are_the_real_imports(stage: str) -> None:
    listed = {dep for dep in SPECS[stage]["deps"] if dep.startswith("src/")}
    assert listed == imported_modules(stage)


def test_every_setting_but_those_of_the_hardware_is_tracked() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    tracked = {key for spec in SPECS.values() for key in spec.get("params", [])}
    keys = {f"{section}.{name}" for section, values in params.items() for name in values}
    untracked = {key for key in keys if not {key, key.split(".")[0]} & tracked}
    assert untracked == {key for key in keys if key.startswith("runtime.")}


def test_preparing_data_does_not_wait_for_torch() -> None:
    imports = f"import {', '.join(list(STAGES)[:3])}"
    script = f"import sys; sys.path.insert(0, 'src'); {imports}; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], cwd=ROOT) == b"False\n"


def test_stages_say_what_they_do_and_run_without_templates() -> None:
    assert list(SPECS) == list(STAGES)
    for name, stage in SPECS.items():
        assert stage["desc"]
        assert stage["cmd"] == f"exec python src/{name}.py"


def is_ignored(path: str, repository: Path) -> bool:
    """Whether the project's rules have git ignore ``path``, whatever the user's rules."""
    command = ["git", "-c", "core.excludesFile=/dev/null", "check-ignore", "-q", path]
    status = subprocess.run(command, cwd=repository).returncode
    assert status in (0, 1)  # anything else is a failure of git
    return status == 0


@pytest.mark.parametrize("kind", ["outs", "metrics", "plots"])
def test_outputs_are_ignored_by_git_and_metrics_and_plots_are_not(kind: str, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    outs = [out for stage in SPECS.values() for out in stage.get(kind, [])]
    assert outs
    for out in outs:
        if isinstance(out, str):
            assert is_ignored(f"{out}/file", tmp_path)
            continue
        ((path, options),) = out.items()
        assert options["cache"] is False
        assert kind == "plots" or list(options) == ["cache"]  # plots also say how they are drawn
        assert path.startswith("metrics/")
        assert not is_ignored(path, tmp_path)
