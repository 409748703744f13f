from pathlib import Path

import pytest
import torch

from receiptbert import onednn, precision
from receiptbert.errors import UserError
from receiptbert.precision import choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("hardware", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_only_where_the_hardware_has_it(
    monkeypatch: pytest.MonkeyPatch, hardware: bool, chosen: str
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda _: hardware)
    assert choose_precision("auto", CPU, "pretrain.precision") == chosen
    assert choose_precision("fp32", CPU, "pretrain.precision") == "fp32"


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_what_the_hardware_lacks_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda _: False)
    with pytest.raises(UserError, match=rf"finetune.precision = {name}, .* set auto"):
        choose_precision(name, CPU, "finetune.precision")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fma avx512f", False), ("fma avx512_bf16", True), ("amx_bf16 amx_tile", True), ("fp bf16 i8mm", True)],
)
def test_a_cpu_tells_whether_it_multiplies_bf16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool
) -> None:
    monkeypatch.setattr(onednn, "CPUINFO", tmp_path / "cpuinfo")
    assert not precision.has_bf16(CPU)  # no such file
    (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags: {flags}\n")
    assert precision.has_bf16(CPU) == expected
