"""Where to compute, how much memory is free there, and what a training keeps of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from receiptbert import onednn
from receiptbert.devices import choose_device, free_memory
from receiptbert.onednn import KEPT_SHAPES, keep_shapes
from tests.conftest import Cut
from tests.projects import STAGES, run_here, set_params

# How much memory (KiB) a process has more after a tensor of 64 MiB has come and gone.
GROWTH = """
import os, re
from pathlib import Path
import torch
from receiptbert.devices import keep_freed_memory

def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

if {kept}:
    keep_freed_memory(torch.device("cpu"), "fp32")
torch.ones(1 << 10)
before = resident()
torch.ones(1 << 24)
print(resident() - before, os.environ.get("THP_MEM_ALLOC_ENABLE"), os.environ.get("{kept_shapes}"))
"""


def test_freed_memory_is_kept_and_huge_pages_are_asked_for() -> None:
    # A stage that ran in this process before has set it.
    ours = {"THP_MEM_ALLOC_ENABLE", KEPT_SHAPES}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    for kept in (False, True):
        script = [sys.executable, "-c", GROWTH.format(kept=kept, kept_shapes=KEPT_SHAPES)]
        growth, huge_pages, shapes = subprocess.check_output(script, env=environment, text=True).split()
        assert (int(growth) > 60_000) == kept
        assert huge_pages == ("1" if kept else "None")
        assert shapes == ("16" if kept else "None")


@pytest.mark.parametrize(
    ("precision", "pays", "expected"),
    [("fp32", True, "16"), ("bf16", True, "2048"), ("auto", True, "2048"), ("auto", False, "16")],
)
def test_more_shapes_are_kept_where_each_product_is_compiled(
    monkeypatch: pytest.MonkeyPatch, precision: str, pays: bool, expected: str
) -> None:
    monkeypatch.setattr(onednn, "bf16_pays", lambda: pays)
    monkeypatch.setenv(KEPT_SHAPES, "of before")  # so that it is put back afterwards
    keep_shapes(precision)
    assert os.environ[KEPT_SHAPES] == "of before"
    monkeypatch.delenv(KEPT_SHAPES)
    keep_shapes(precision)
    assert os.environ[KEPT_SHAPES] == expected


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gpu_gives_the_same_bits_if_it_is_asked_to(
    project: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    of_cudnn: list[bool] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", of_cudnn.append)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    choose_device("cuda", deterministic)
    assert of_cudnn == [False]
    assert asked == [True] * deterministic
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic

    def note(name: str, flag: bool = False) -> torch.device:
        assert name == "cpu"
        asked.append(flag)
        raise Cut

    set_params(project, {"runtime.deterministic": str(deterministic).lower()})
    for stage in ("pretrain", "finetune", "evaluate"):
        monkeypatch.setattr(f"{stage}.choose_device", note)
        with pytest.raises(Cut):
            run_here(STAGES[stage], project)
    assert asked == [*[True] * deterministic, deterministic, deterministic, False]


def test_free_memory_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("receiptbert.devices.MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("receiptbert.devices.CGROUP", tmp_path)
    monkeypatch.setattr("receiptbert.devices.OWN_CGROUP", tmp_path / "own")
    assert free_memory(cpu) is None  # not Linux
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  5000 kB\n")
    assert free_memory(cpu) == 5000 * 1024
    stat = "anon 500000\nfile 2000000\nshmem 0\n"
    for name, text in {"max": "3000000", "current": "2500000", "stat": stat}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_memory(cpu) == 2_500_000
    job = tmp_path / "slurm/job/step"  # of which a group in between has the limit
    job.mkdir(parents=True)
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/slurm/job/step\n")
    for name, text in {"max": "1200000", "current": "1000000", "stat": "file 300000\nshmem 0\n"}.items():
        (job.parent / f"memory.{name}").write_text(text)
    assert free_memory(cpu) == 500_000
    (job / "memory.max").write_text("max\n")
    (job.parent / "memory.max").unlink()
    assert free_memory(cpu) == 2_500_000
    (tmp_path / "memory.stat").write_text("file 2000000\nshmem 1500000\n")  # files in memory
    assert free_memory(cpu) == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(cpu) == 5000 * 1024


def test_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {torch.device("cuda:1"): (5, 80)}  # free and in all
    monkeypatch.setattr(torch.cuda, "mem_get_info", figures.__getitem__)
    assert free_memory(torch.device("cuda:1")) == 5
