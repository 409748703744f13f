"""How many processes are started, and how they end: a failure is told once, a killed one ends the others."""

import logging
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig

from receiptbert import distributed, launching
from receiptbert.errors import UserError
from receiptbert.params import RuntimeParams
from receiptbert.params_file import load_params
from tests.conftest import SETTINGS, log

LAUNCHER = "torch.distributed.elastic"  # what it logs as


def runtime(device: str, processes: int | None) -> RuntimeParams:
    return replace(load_params(SETTINGS).runtime, device=device, processes=processes)


@pytest.fixture
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.parametrize(
    ("device", "processes", "expected"),
    [
        ("auto", None, 2),
        ("auto", 1, 1),
        ("cuda", 2, 2),
        ("cuda:1", None, 1),
        ("cpu", None, 1),
        ("cpu", 3, 3),
        ("auto", 3, "params.yaml: runtime.processes = 3, but the GPUs that torch finds are 2; set auto"),
        ("cuda:1", 2, "params.yaml: runtime.processes = 2, but runtime.device = cuda:1 is one GPU; set auto"),
    ],
)
def test_there_are_as_many_processes_as_gpus(device: str, processes: int | None, expected: int | str) -> None:
    if isinstance(expected, int):
        assert launching.choose_processes(runtime(device, processes)) == expected
    else:
        with pytest.raises(UserError) as refused:
            launching.choose_processes(runtime(device, processes))
        assert str(refused.value) == expected


@pytest.mark.usefixtures("_two_gpus")
def test_each_process_of_torchrun_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert launching.own_device(runtime("auto", None)).device == "cuda:1"
    assert launching.own_device(runtime("cpu", None)).device == "cpu"
    assert current == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"has started 4 processes here, .* 2; give it --nproc-per-node=2"):
        launching.own_device(runtime("auto", None))


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []

    def patience(config: object) -> int:  # torch before 2.12 has no choice
        return getattr(config, "shutdown_timeout", launching.SHUTDOWN_SECONDS)

    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    monkeypatch.setattr(
        launching,
        "elastic_launch",
        lambda config, *_: lambda _: shares.append((os.environ["OMP_NUM_THREADS"], patience(config))),
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    for given in ("4", None):
        monkeypatch.setenv("OMP_NUM_THREADS", given or "")
        if given is None:
            monkeypatch.delenv("OMP_NUM_THREADS")
        launching.launch("pretrain.py", 2)
    # A checkpoint is written within that time after a signal, before the launcher kills.
    assert shares == [("4", launching.SHUTDOWN_SECONDS), ("2", launching.SHUTDOWN_SECONDS)]


def test_of_processes_that_fail_the_first_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "rendezvous", lambda: (store, 0, 3))
    monkeypatch.setattr("receiptbert.progress.quiet", False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")

    def fail(rank: str, error: Exception) -> None:
        monkeypatch.setenv("RANK", rank)
        with launching.one_voice():
            raise error

    with pytest.raises(UserError, match="no such thing"):
        fail("1", UserError("no such thing"))
    for other in (UserError("no such thing"), RuntimeError("Connection closed by peer [127.0.0.1]")):
        with pytest.raises(SystemExit) as ended:
            fail("0", other)
        assert ended.value.code == 1
    store.delete_key("failures")
    with pytest.raises(UserError, match="another process of the training has died"):
        fail("2", RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer"))


@pytest.mark.parametrize(
    "said",
    [
        "[../gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:4321: Connection reset by peer",
        "[../gloo/transport/tcp/pair.cc:609] Write error: Broken pipe",
        "Timed out waiting 1800000ms for recv operation to complete",
        "NCCL error: ncclRemoteError: A call failed possibly due to a network error",
    ],
)
def test_a_broken_connection_is_told_as_the_death_of_another_process(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(distributed, "rendezvous", lambda: (dist.HashStore(), 0, 3))
    monkeypatch.setattr("receiptbert.progress.quiet", False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="another process of the training has died"), launching.one_voice():
        raise RuntimeError(said)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 1, 1: -signal.SIGKILL}, "process 1 of 2 was ended by SIGKILL; run the same command …"),
        ({0: 1, 1: -signal.SIGTERM}, 1),
        (
            {0: -signal.SIGTERM, 1: -signal.SIGTERM},
            "process 0 of 2 was ended by SIGTERM; run the same command …",
        ),
        ({0: 143, 1: 143}, 143),
    ],
)
def test_a_failure_ends_the_launcher_in_a_line_at_the_most(
    monkeypatch: pytest.MonkeyPatch, codes: dict[int, int], expected: int | str
) -> None:
    failures = {rank: ProcessFailure(rank, 0, code, "") for rank, code in codes.items()}

    def fail(_: str) -> None:
        logging.getLogger(LAUNCHER).error("pages of it")
        raise ChildFailedError("pretrain", failures)

    monkeypatch.setattr(launching, "elastic_launch", lambda *_: fail)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with log(LAUNCHER, logging.ERROR) as heard, pytest.raises((UserError, SystemExit)) as ended:
        launching.launch("pretrain.py", 2)
    assert heard.getvalue() == ""
    assert logging.root.manager.disable == logging.NOTSET  # for what the program logs later
    if isinstance(expected, int):
        assert ended.value.args == (expected,)
    else:
        assert str(ended.value).startswith(expected.removesuffix("…"))


def test_a_signal_ends_the_launcher_as_it_would_have_ended_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: str) -> None:
        raise SignalException("ended by SIGTERM", signal.SIGTERM)

    monkeypatch.setattr(launching, "elastic_launch", lambda *_: stop)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(SystemExit) as ended:
        launching.launch("pretrain.py", 2)
    assert ended.value.code == 128 + signal.SIGTERM


def test_the_launcher_heeds_signals_that_it_was_not_started_to_ignore(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heeded = []

    def note(config: LaunchConfig, *_: object) -> Callable[[str], None]:
        heeded.append(config.signals_to_handle)
        return lambda _: None

    monkeypatch.setattr(launching, "elastic_launch", note)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launching.launch("pretrain.py", 2)
    for number in (signal.SIGHUP, signal.SIGINT):
        before = signal.signal(number, signal.SIG_IGN)
        try:
            launching.launch("pretrain.py", 2)
        finally:
            signal.signal(number, before)
    assert heeded == ["SIGINT,SIGTERM,SIGHUP", "SIGINT,SIGTERM", "SIGTERM,SIGHUP"]


def test_the_launcher_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.py").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launching.launch(str(tmp_path / "script.py"), 2)
    assert list((tmp_path / "temporary").iterdir()) == []
