import dataclasses
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from receiptbert.errors import UserError
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


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("finetune.lr", "fast", "finetune.lr = 'fast' must be a number"),
        ("finetune.lr", "true", "finetune.lr = True must be a number"),
        ("finetune.lr", "0", "finetune.lr must be above 0"),
        ("finetune.lr", "", "finetune.lr = None must be a number"),
        ("finetune.epochs", "6.5", "finetune.epochs = 6.5 must be a whole number"),
        ("finetune.epochs", "yes", "finetune.epochs = 'yes' must be a whole number"),
        ("finetune.epochs", "0", "finetune.epochs must be at least 1"),
        ("finetune.batch_size", "-1", "finetune.batch_size must be at least 1"),
        ("finetune.final_lr", "1", r"finetune.final_lr must be between 0 and lr \(0.0"),
        ("finetune.warmup", "1.0", "finetune.warmup must be a fraction"),
        ("finetune.init", "''", "finetune.init must be pretrained, scratch"),
        ("finetune.teachers", "-1", "finetune.teachers must be at least 0"),
        ("finetune.dropout", "1", "finetune.dropout must be at least 0 and below 1"),
        ("pretrain.mask_prob", "1.5", "pretrain.mask_prob must be between 0 and 1"),
        ("pretrain.random_prob", "0.95", "pretrain.random_prob must be at most 1 - keep_unchanged_prob"),
        ("pretrain.weight_decay", "-0.1", "pretrain.weight_decay must be at least 0"),
        ("pretrain.max_grad_norm", "0", "pretrain.max_grad_norm must be above 0"),
        ("pretrain.num_accum_steps", "0", "pretrain.num_accum_steps must be at least 1"),
        ("pretrain.holdout", "0", "pretrain.holdout must be at least 1"),
        ("model.hidden_size", "251", "model.hidden_size must be a multiple of num_attention_heads"),
        ("model.num_hidden_layers", "0", "model.num_hidden_layers must be at least 1"),
        ("model.act_func", "silu", "model.act_func must be gelu or relu"),
        ("tokenizer.vocab_size", "3", "tokenizer.vocab_size must be at least 10"),
        ("tokenizer.min_frequency", "0", "tokenizer.min_frequency must be at least 1"),
        ("pretokenize.max_length_quantile", "0", "pretokenize.max_length_quantile must be above 0"),
        ("data.archive", "7", "data.archive = 7 must be a text"),
        ("runtime.device", "tpu", "runtime.device must be auto, cpu or cuda"),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, key: str, value: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"params\.yaml: {message}"):
        load(tmp_path, with_value(SHIPPED, key, value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SHIPPED.replace("  lr:", "  learning_rate:"),
            r"unknown key pretrain\.learning_rate; known are seed, ",
        ),
        (SHIPPED + "\nfinetuning:\n  lr: 1\n", "unknown key finetuning; known are data, "),
        (SHIPPED.replace("  init:", "  # init:"), r"missing key finetune\.init"),
        (SHIPPED.split("finetune:")[0], "missing key finetune"),
        ("- 1\n- 2\n", "the document must be a mapping"),
        (SHIPPED.replace("runtime:\n", "runtime: 1\nx:\n"), "unknown key x"),
        ("data: [", "is not valid YAML"),
        ("", "the document must be a mapping"),
        (SHIPPED + "\ndata:\n  archive: other.zip\n", "is not valid YAML"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run from the project's root"):
        load_params(tmp_path / "params.yaml")
