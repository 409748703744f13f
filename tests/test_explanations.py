"""What is said of an error of the machine: one line with advice."""

import errno
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from receiptbert.errors import UserError
from receiptbert.failures import explain
from receiptbert.files import naming
from receiptbert.params_file import load_params
from receiptbert.tables import open_binary
from tests.conftest import SETTINGS
from tests.projects import set_params


@pytest.mark.parametrize(
    "number",
    [
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EMFILE,
        errno.EIO,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    ],
)
def test_what_the_system_says_of_a_file_is_one_line_with_advice(number: int) -> None:
    error = OSError(number, os.strerror(number), "metrics/test.json")
    line = explain(error, "evaluate", None)
    assert line is not None
    assert re.fullmatch(rf"metrics/test\.json: {os.strerror(number)}; .+", line)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ESTALE, errno.ENOTEMPTY])
def test_what_else_the_system_says_of_a_file_is_one_line(number: int) -> None:
    error = OSError(number, os.strerror(number), "models")
    assert explain(error, "pretrain", None) == f"models: {os.strerror(number)}"


def test_errors_of_rust_libraries_are_understood(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught, naming(tmp_path / "x"):
        raise ValueError("I/O error: ENOSPC (os error 28)")
    assert explain(caught.value, "pretrain", None) == (
        f"{tmp_path}/x: No space left on device; free some space, or move the project to a larger disk, "
        "and run it again"
    )


def test_an_error_of_another_file_stays_that_of_the_other_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model is damaged"), naming(tmp_path / "out.csv"):
        raise UserError("model is damaged (No such device (os error 19)); take it again")
    source = tmp_path / "in.csv"
    source.write_text("text\n")
    with pytest.raises(OSError, match=r"in\.csv"), naming(tmp_path / "out.csv"), open_binary(source):
        raise OSError(errno.EIO, os.strerror(errno.EIO))  # of a read, which does not know the name
    with pytest.raises(OSError, match="stdin"), naming(tmp_path / "out.csv"), open_binary(None):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    assert explain(KeyError("x"), "pretrain", None) is None
    assert explain(OSError("odd"), "pretrain", None) is None
    assert explain(FileNotFoundError(errno.ENOENT, "No such file"), "pretrain", None) is None


GPU = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which "
    "1.24 GiB is free. Process 1 has 77.8 GiB memory in use."
)


CPU = RuntimeError(
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 40 bytes."
)


NUMPY = MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000,) and data type float64")


PRETRAIN = (
    "pretrain.batch_size is 64: try pretrain.batch_size=32 and pretrain.num_accum_steps=2, which makes steps "
    "of as many texts, or runtime.activation_checkpointing=true, or a smaller model"
)


@pytest.mark.parametrize(
    ("error", "stage", "line"),
    [
        (
            GPU,
            "pretrain",
            "out of memory (2.00 GiB were requested, GPU 0 has a total capacity of 79.10 GiB of which "
            f"1.24 GiB is free); {PRETRAIN}",
        ),
        (CPU, "pretrain", f"out of memory (40 bytes were requested); {PRETRAIN}"),
        (
            NUMPY,
            "finetune",
            "out of memory (7.28 TiB were requested); finetune.batch_size is 32: try finetune.batch_size=16, "
            "or runtime.activation_checkpointing=true, or finetune.teachers=0, or a smaller model",
        ),
        (RuntimeError("CUDA error: out of memory"), "pretrain", f"out of memory; {PRETRAIN}"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when"), "pretrain", f"out of memory; {PRETRAIN}"),
        (
            MemoryError(),
            "predict",
            "out of memory; give a smaller --batch-size, end other programs, or take a machine with more "
            "memory",
        ),
        (
            RuntimeError("CUDA error: no kernel image is available for execution\nCompile with"),
            "pretrain",
            "the GPU cannot be used (CUDA error: no kernel image is available for execution); end other "
            "programs that use it, install a torch that is built for it, or set runtime.device=cpu",
        ),
        (
            MemoryError(),
            "unzip",
            "out of memory; end other programs that use the memory, or take a machine with more",
        ),
    ],
)
def test_what_the_device_refuses_is_one_line_with_advice(error: Exception, stage: str, line: str) -> None:
    assert explain(error, stage, load_params(SETTINGS)) == line


def test_out_of_memory_names_a_batch_that_makes_the_same_steps() -> None:
    params = load_params(SETTINGS)
    odd = replace(params, pretrain=replace(params.pretrain, batch_size=75, num_accum_steps=2))
    line = explain(CPU, "pretrain", odd)
    assert line is not None
    assert "pretrain.batch_size is 75: try pretrain.batch_size=25 and pretrain.num_accum_steps=6," in line


def test_settings_of_the_advice_exist_and_are_not_given_twice(bare_project: Path) -> None:
    path = bare_project / "params.yaml"
    for stage in ("pretrain", "finetune"):
        for _ in range(20):
            params = load_params(path)
            line = explain(MemoryError(), stage, params)
            assert line is not None
            if line == "out of memory; a smaller model":
                break
            set_params(bare_project, dict(re.findall(r"(\w+\.\w+)=(\w+)", line)))
            assert load_params(path) != params
        else:
            pytest.fail("the advice never ends")
        assert getattr(params, stage).batch_size == 1
    assert params.pretrain.num_accum_steps == 64
    assert params.finetune.teachers == 0
