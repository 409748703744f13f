import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from receiptbert.params_file import load_params
from receiptbert.sizes import SIZES
from tests.conftest import ROOT, SETTINGS
from tests.projects import with_value

WHOLE = SETTINGS.read_text()


def load(folder: Path, text: str):  # type: ignore[no-untyped-def]
    (folder / "params.yaml").write_text(text)
    return load_params(folder / "params.yaml")


def test_params_yaml_has_every_setting() -> None:
    load_params(ROOT / "params.yaml")  # refuses an unknown or missing one


def test_a_file_is_read_whole() -> None:
    document = YAML(typ="safe", pure=True).load(WHOLE)
    read = dataclasses.asdict(load_params(SETTINGS))
    of_mini = {
        "model": {
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
        "pretrain": {"lr": 5e-4, "warmup": 0.06, "dropout": 0.0},
        "finetune": {
            "lr": 8e-4,
            "layer_lr_decay": 0.65,
            "warmup": 0.06,
            "dropout": 0.1,
        },
    }
    for section, values in of_mini.items():
        for name, value in values.items():
            assert document[section].pop(name) == "auto"
            assert read[section].pop(name) == value
    assert document["runtime"].pop("processes") == "auto"
    assert read["runtime"].pop("processes") is None
    assert read == document


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ("tiny", (128, 2, 2, 512)),
        ("mini", (256, 4, 4, 1024)),
        ("small", (512, 4, 8, 2048)),
        ("medium", (512, 8, 8, 2048)),
        ("base", (768, 12, 12, 3072)),
        ("large", (1024, 24, 16, 4096)),
    ],
)
def test_a_size_sets_all_that_is_auto(tmp_path: Path, size: str, shape: tuple[int, ...]) -> None:
    params = load(tmp_path, with_value(WHOLE, "model.size", size))
    model = params.model
    assert shape == (
        model.hidden_size,
        model.num_hidden_layers,
        model.num_attention_heads,
        model.intermediate_size,
    )
    for found, of_size in ((params.pretrain, SIZES[size].pretrain), (params.finetune, SIZES[size].finetune)):
        assert dataclasses.asdict(found).items() >= dataclasses.asdict(of_size).items()
    assert "size" not in model.kwargs()
    by_hand = with_value(with_value(WHOLE, "model.size", size), "pretrain.lr", "7e-5")
    assert load(tmp_path, by_hand) == dataclasses.replace(
        params, pretrain=dataclasses.replace(params.pretrain, lr=7e-5)
    )


def test_a_larger_model_never_learns_faster() -> None:
    for one, larger in pairwise(SIZES.values()):
        assert (one.hidden_size, one.num_hidden_layers) < (larger.hidden_size, larger.num_hidden_layers)
        assert one.pretrain.lr >= larger.pretrain.lr
        assert one.finetune.lr >= larger.finetune.lr


def test_heads_and_feed_forward_follow_a_width_set_by_hand(tmp_path: Path) -> None:
    model = load(tmp_path, with_value(WHOLE, "model.hidden_size", "192")).model
    assert (model.num_attention_heads, model.intermediate_size) == (3, 768)
    assert model.num_hidden_layers == 4  # of mini still


def test_layers_from_scratch_train_at_one_rate_if_nobody_says_otherwise(tmp_path: Path) -> None:
    scratch = with_value(WHOLE, "finetune.init", "scratch")
    assert load(tmp_path, scratch).finetune.layer_lr_decay == 1
    assert (
        load(tmp_path, with_value(scratch, "finetune.layer_lr_decay", "0.5")).finetune.layer_lr_decay == 0.5
    )


@pytest.mark.parametrize("written", ["3e-05", "3e-5", "3.0e-05", "0.00003"])
def test_numbers_as_dvc_writes_them(tmp_path: Path, written: str) -> None:
    """``dvc exp run -S finetune.lr=3e-5`` writes 3e-05, which PyYAML reads as a text."""
    assert load(tmp_path, with_value(WHOLE, "finetune.lr", written)).finetune.lr == 3e-5


def test_a_whole_number_serves_as_a_fraction(tmp_path: Path) -> None:
    assert load(tmp_path, with_value(WHOLE, "pretrain.max_grad_norm", "2")).pretrain.max_grad_norm == 2.0
