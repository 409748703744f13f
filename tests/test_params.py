import dataclasses
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from receiptbert.params import load_params
from tests.conftest import ROOT, with_value

SHIPPED = (ROOT / "params.yaml").read_text()


def load(folder: Path, text: str):  # type: ignore[no-untyped-def]
    (folder / "params.yaml").write_text(text)
    return load_params(folder / "params.yaml")


def test_shipped_file_is_read_whole() -> None:
    document = YAML(typ="safe", pure=True).load(SHIPPED)
    assert dataclasses.asdict(load_params(ROOT / "params.yaml")) == document


@pytest.mark.parametrize("written", ["3e-05", "3e-5", "3.0e-05", "0.00003"])
def test_numbers_as_dvc_writes_them(tmp_path: Path, written: str) -> None:
    """``dvc exp run -S finetune.lr=3e-5`` writes 3e-05, which PyYAML reads as a text."""
    assert load(tmp_path, with_value(SHIPPED, "finetune.lr", written)).finetune.lr == 3e-5


def test_a_whole_number_serves_as_a_fraction(tmp_path: Path) -> None:
    assert load(tmp_path, with_value(SHIPPED, "pretrain.max_grad_norm", "2")).pretrain.max_grad_norm == 2.0
