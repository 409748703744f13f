"""Several processes train as one does, through a kill and a restart too; their shares make up the whole."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from receiptbert import distributed
from receiptbert.checkpoints import training_fingerprint
from receiptbert.errors import UserError
from tests.conftest import ROOT, Cut
from tests.projects import STAGES, logged, metric, run_here, set_params

EQUAL = {"abs": 1e-4}


@pytest.fixture
def make_project(tiny_project: Path, tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Make a copy of the tiny project with other settings, and with no outputs of a training."""
    made: list[Path] = []

    def make(params: dict[str, str]) -> Path:
        made.append(tmp_path / f"project{len(made)}")
        shutil.copytree(tiny_project, made[-1], ignore=shutil.ignore_patterns("runs", ".checkpoints"))
        set_params(made[-1], params)
        return made[-1]

    return make


def python(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    # A hang ends the test.
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_two_processes_pretrain_as_one_does_through_a_kill_a_restart_and_a_stop(
    make_project: Callable[[dict[str, str]], Path],
) -> None:
    """Until step 55 in two processes of torchrun, from there on in one."""
    params = {
        "pretrain.precision": "fp32",
        "pretrain.epochs": "1000",
        "pretrain.max_steps": "60",
        "pretrain.batch_size": "12",
        "pretrain.num_accum_steps": "2",
        "pretrain.lr": "1e-2",
        "pretrain.max_grad_norm": "0.5",
        "runtime.checkpoint_seconds": "0",
    }
    alone, together = make_project(params), make_project(params)
    run_here(STAGES["pretrain"], alone)

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    ended = python(together, *torchrun, str(ROOT / "tests/pretraining_with_accidents.py"))
    said = [line for line in ended.stderr.splitlines() if line.startswith(("pretrain:", "resumed", "SIG"))]
    # The launcher may have ended the other process before that could say so.
    for line in said[:-2]:
        assert line.startswith(
            "pretrain: error: another process of the training has died; run the same command"
        )
    assert said[-2].startswith("resumed after step ")
    assert said[-1].startswith("SIGTERM: stopped after step 5")
    assert len(said) <= 3
    assert metric(together, "pretrain")["steps"] != 60  # nothing is written before the end

    ended = python(together, str(ROOT / "src/pretrain.py"))
    assert ended.returncode == 0, ended.stderr
    assert "resumed after step 5" in ended.stderr
    assert "processes was 2, is 1: the result will not be the same to the bit" in ended.stderr

    expected, found = (logged(*(folder / "runs/pretrain").iterdir()) for folder in (alone, together))
    assert expected.keys() == found.keys() == {"MLM", "SOP", "tokens", "grad_norm", "lr"}
    for name, values in expected.items():
        assert len(values) == 60
        assert found[name] == pytest.approx(values, **EQUAL), name
    assert metric(together, "pretrain") == pytest.approx(metric(alone, "pretrain"), **EQUAL)
    assert not list((together / ".checkpoints").rglob("*.safetensors"))


def messages(said: str) -> list[str]:
    """Lines without those of progress, which a slow machine has more of."""
    return [line for line in said.splitlines() if not re.search(r" in [\d,]+ s$|s left$", line)]


def test_two_processes_finetune_as_one_does(
    make_project: Callable[[dict[str, str]], Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    params = {
        "finetune.precision": "fp32",
        "finetune.epochs": "3",
        "finetune.batch_size": "8",
        "finetune.lr": "3e-2",
        "finetune.dropout": "0",
        "finetune.teachers": "1",
    }
    alone, together = make_project(params), make_project(params | {"runtime.processes": "2"})
    run_here(STAGES["finetune"], alone)
    said = capfd.readouterr()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("tempfile.tempdir", str(together))  # for the launcher
    run_here(STAGES["finetune"], together)
    said_together = capfd.readouterr()
    assert said_together.out == said.out
    assert len(messages(said_together.err)) == len(messages(said.err))
    assert metric(alone, "finetune")["temperature"] != 1  # something was learned
    assert metric(together, "finetune") == pytest.approx(
        metric(alone, "finetune") | {"processes": 2}, **EQUAL
    )
    for training in ("finetune", "finetune-teacher-1"):
        expected, found = (logged(*(folder / "runs" / training).iterdir()) for folder in (alone, together))
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, **EQUAL), name


# --- A process of several, without the others ---


def test_processes_of_all_hosts_and_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (distributed.num_processes(), distributed.num_processes_here()) == (1, 1)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (distributed.num_processes(), distributed.num_processes_here()) == (4, 2)


def test_a_checkpoint_that_is_due_is_agreed_upon_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *_, **__: SimpleNamespace(wait=lambda: None))
    agreement, due, saved = distributed.Agreement(), False, []
    for step in range(1, 10):
        due |= step in (3, 7)
        save, _ = agreement.on(due, 0)
        if save:
            saved.append(step)
            due = False
    assert saved == [4, 8]


@pytest.fixture
def one_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    def pretend(rank: int, processes: int) -> None:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "num_processes", lambda: processes)

    return pretend


@pytest.mark.parametrize("processes", [1, 2, 5])
@pytest.mark.parametrize("texts", [1, 4, 5, 13])
def test_the_shares_of_a_batch_are_the_batch(
    one_of: Callable[[int, int], None], processes: int, texts: int
) -> None:
    losses = torch.rand(texts, 3)
    is_target = torch.rand(texts, 3) < 0.6
    is_target[0, 0] = True
    of_rows = of_targets = torch.tensor(0.0)
    for rank in range(processes):
        one_of(rank, processes)
        share = distributed.share_of(texts)
        own, own_target = losses[share.rows], is_target[share.rows]
        assert len(own)
        of_rows = of_rows + share.weight * own.mean() / processes
        mean = own[own_target].sum() / own_target.sum().clamp(min=1)
        of_targets = of_targets + distributed.weight_of(share, is_target) * mean / processes
    assert of_rows == pytest.approx(losses.mean())
    assert of_targets == pytest.approx(losses[is_target].mean())


@pytest.mark.parametrize("number", [2, 7])
def test_what_is_computed_in_shares_comes_back_in_order(
    one_of: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    computed: dict[int, Any] = {}

    def gather(shares: list[Any], own: Any, **_: Any) -> None:
        computed[distributed.rank()] = own
        if len(computed) < 3:  # the last to ask sees the shares of all
            raise Cut
        shares[:] = [computed[rank] for rank in range(3)]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    compute = partial(
        distributed.in_shares, lambda rows: np.stack([rows, -rows], 1, dtype=np.float32), number
    )
    for rank in (1, 2):
        one_of(rank, 3)
        with pytest.raises(Cut):
            compute()
    one_of(0, 3)
    rows = compute()
    assert rows.tolist() == [[row, -row] for row in range(number)]


def test_random_numbers_of_dropout_differ_and_those_of_the_data_do_not(
    one_of: Callable[[int, int], None],
) -> None:
    dropout, data = set(), set()
    for seed, rank, batch in ((0, 0, 1), (0, 1, 1), (0, 0, 2), (0, 1, 2), (1, 0, 1)):
        one_of(rank, 2)
        torch.manual_seed(seed)
        with distributed.own_random_numbers(torch.device("cpu"), 7, batch):
            dropout.add(torch.rand(rank + 1)[0].item())
        data.add((seed, torch.rand(1).item()))
    assert len(dropout) == 5
    assert len(data) == 2  # one of each seed


def test_a_process_with_other_files_than_those_of_the_main_process_does_not_train(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "texts").write_text("of both")
    of_both = training_fingerprint(["parameters"], [tmp_path / "texts"])
    monkeypatch.setattr("receiptbert.checkpoints.from_main_process", lambda _: of_both)
    monkeypatch.setattr("receiptbert.checkpoints.rank", lambda: 3)
    assert training_fingerprint(["parameters"], [tmp_path / "texts"]) == of_both
    (tmp_path / "texts").write_text("of an old copy")
    with pytest.raises(UserError, match=r"process 3, on .*, has other parameters, inputs or code than"):
        training_fingerprint(["parameters"], [tmp_path / "texts"])


def test_long_waits_are_those_of_a_patient_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, whatever trains: NCCL cannot send what they send."""
    made, groups = [], []

    def new_group(backend: str, timeout: timedelta) -> str:
        made.append((backend, timeout))
        return "patient"

    def note(*_: Any, group: Any, **__: Any) -> None:
        groups.append(group)

    def gather(shares: list[Any], share: Any, group: Any) -> None:
        shares[:] = [share, share[:1]]
        groups.append(group)

    monkeypatch.setattr(distributed, "_patient", None)
    monkeypatch.setattr(distributed, "rendezvous", lambda: (None, 0, 2))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: made.append(backend))
    monkeypatch.setattr(dist, "new_group", new_group)
    distributed.join(on_gpu=True)
    assert made == ["nccl", ("gloo", distributed.LONG_TIMEOUT)]

    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    for name in ("barrier", "broadcast_object_list", "all_reduce"):
        monkeypatch.setattr(dist, name, note)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    distributed.barrier()
    assert distributed.from_main_process(lambda: 5) == 5
    assert distributed.in_shares(lambda rows: rows[:, None].astype(np.float32), 3).shape == (3, 1)
    distributed.Agreement().on(False, 0)
    assert groups == ["patient"] * 4
