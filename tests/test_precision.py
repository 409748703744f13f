from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from receiptbert import onednn, precision
from receiptbert.errors import UserError
from receiptbert.precision import choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("pays", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_only_where_it_pays(monkeypatch: pytest.MonkeyPatch, pays: bool, chosen: str) -> None:
    monkeypatch.setattr(precision, "bf16_pays", lambda: pays)
    assert choose_precision("auto", CPU, "pretrain.precision") == chosen
    assert choose_precision("fp32", CPU, "pretrain.precision") == "fp32"


@pytest.mark.parametrize(("hardware", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_asks_the_gpu_that_computes(
    monkeypatch: pytest.MonkeyPatch, hardware: bool, chosen: str
) -> None:
    monkeypatch.setattr(precision, "bf16_pays", lambda: not hardware)
    monkeypatch.setattr(precision, "has_bf16", lambda device: hardware and device.index == 1)
    assert choose_precision("auto", torch.device("cuda:1"), "pretrain.precision") == chosen


def test_a_gpu_that_only_imitates_bf16_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[int | None] = []

    @contextmanager
    def device(asked: torch.device) -> Iterator[None]:
        current.append(asked.index)
        yield
        current.pop()

    def is_supported(including_emulation: bool = True) -> bool:
        return including_emulation or current == [1]

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert precision.has_bf16(torch.device("cuda:1"))
    assert not precision.has_bf16(torch.device("cuda:0"))


def test_a_gpu_has_fp16() -> None:
    assert choose_precision("fp16", torch.device("cuda"), "pretrain.precision") == "fp16"


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_what_the_hardware_lacks_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda _: False)
    with pytest.raises(UserError, match=rf"finetune.precision = {name}, .* set auto"):
        choose_precision(name, CPU, "finetune.precision")


@pytest.mark.parametrize(
    ("vendor", "flags", "has", "pays"),
    [
        ("GenuineIntel", "fma avx512f", False, False),
        ("GenuineIntel", "fma avx512_bf16", True, False),  # tiles hidden by a virtual machine
        ("GenuineIntel", "avx512_bf16 amx_bf16 amx_tile", True, True),
        ("AuthenticAMD", "fma avx512_bf16", True, True),
        ("0x41", "fp bf16 i8mm", True, True),  # Arm
    ],
)
def test_a_cpu_tells_whether_it_multiplies_bf16_and_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, flags: str, has: bool, pays: bool
) -> None:
    monkeypatch.setattr(onednn, "CPUINFO", tmp_path / "cpuinfo")
    assert not precision.has_bf16(CPU)  # no such file
    assert not onednn.bf16_pays()
    (tmp_path / "cpuinfo").write_text(f"vendor_id: {vendor}\nflags: {flags}\n")
    assert precision.has_bf16(CPU) == has
    assert onednn.bf16_pays() == pays
