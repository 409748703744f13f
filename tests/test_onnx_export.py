"""The exported file gives our probabilities to who has onnxruntime and tokenizers alone."""

import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

from receiptbert import BertFinetuneModel, WordpieceTokenizer, cli, onnx_export
from receiptbert.errors import UserError
from receiptbert.hf_format import save_pretrained
from receiptbert.onnx_export import export_onnx
from receiptbert.saved_classifier import load_classifier
from tests.conftest import ROOT, SHAPE, balanced, log

NAMES, LABELS = ["Чай", "Сыр", "Мыло"], ["7", "10", "11"]
TEMPERATURE = 0.5


@pytest.fixture(scope="module")
def checkpoint(
    texts: list[str], tokenizer: WordpieceTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    torch.manual_seed(0)
    model = BertFinetuneModel(vocab_size=tokenizer.vocab_size, num_classes=3, **SHAPE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    save_pretrained(balanced(model, texts, tokenizer), tokenizer, folder, NAMES, LABELS, TEMPERATURE)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    path = checkpoint / "new" / "model.onnx"
    path.parent.mkdir()
    with log(None, logging.WARNING) as heard:
        agreement = export_onnx(checkpoint, path)
    assert heard.getvalue() == ""  # warnings of the exporter's own workings would be shown
    assert agreement.same_labels == 1
    assert agreement.difference < 1e-5
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    return path


def foreign_probabilities(checkpoint: Path, path: Path, texts: Sequence[str]) -> np.ndarray:
    """As someone without receiptbert and torch gets them."""
    session = onnxruntime.InferenceSession(path)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.enable_truncation(int(session.get_modelmeta().custom_metadata_map["max_length"]))
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(list(texts))
    feed = {
        "input_ids": np.array([encoding.ids for encoding in encodings]),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),
    }
    probabilities: np.ndarray = session.run(["probabilities"], feed)[0]
    return probabilities


@pytest.mark.parametrize("lines", [slice(0, 1), slice(3, 40), slice(-2, None)], ids=["one", "many", "two"])
def test_any_batch_and_length_gives_calibrated_probabilities(
    checkpoint: Path, exported: Path, texts: list[str], lines: slice
) -> None:
    texts = [*texts, "", " ".join(texts[:9])][lines]  # an empty one, and one far too long
    model, tokenizer, *_ = load_classifier(checkpoint)
    inputs = [
        [tokenizer.cls_token_id, *tokenizer(text)[: SHAPE["max_seqlen"] - 2], tokenizer.sep_token_id]
        for text in texts
    ]
    with torch.no_grad():  # one by one, without padding
        expected = [(model(torch.tensor([ids])) / TEMPERATURE).softmax(-1)[0].tolist() for ids in inputs]
    np.testing.assert_allclose(foreign_probabilities(checkpoint, exported, texts), expected, atol=1e-5)


def test_the_file_tells_its_labels_and_not_where_it_was_made(exported: Path) -> None:
    metadata = onnxruntime.InferenceSession(exported).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == LABELS
    assert json.loads(metadata["categories"]) == NAMES
    content = exported.read_bytes()
    for path in (Path(onnx_export.__file__).parent, Path(torch.__file__).parent):
        assert str(path).encode() not in content


def test_eight_bits_are_smaller_and_much_the_same(
    checkpoint: Path, exported: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_export", lambda *arguments: shutil.copy(exported, arguments[-1]))
    agreement = export_onnx(checkpoint, tmp_path / "int8.onnx", int8=True, texts=texts)
    assert agreement.lines == len(texts)
    assert agreement.same_labels > 0.8
    assert 1e-5 < agreement.difference < 0.3
    exact, rough = (
        foreign_probabilities(checkpoint, path, texts) for path in (exported, tmp_path / "int8.onnx")
    )
    assert np.abs(exact - rough).max() == pytest.approx(agreement.difference, abs=0.1)
    assert (tmp_path / "int8.onnx").stat().st_size < exported.stat().st_size


def test_a_file_that_answers_otherwise_is_not_left(
    checkpoint: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_export", lambda *arguments: shutil.copy(exported, arguments[-1]))
    save_pretrained(*load_classifier(checkpoint)[:2], tmp_path / "warmer", NAMES, temperature=2 * TEMPERATURE)
    out = tmp_path / "out" / "model.onnx"
    out.parent.mkdir()
    with pytest.raises(UserError, match=r"model\.onnx was not written: 100\.00% of 256 lines"):
        export_onnx(tmp_path / "warmer", out)
    assert not list(out.parent.iterdir())


def test_the_command(
    checkpoint: Path,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(onnx_export, "_export", lambda *arguments: shutil.copy(exported, arguments[-1]))
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_text("аб\r\n\r\nв г\r\n", encoding="utf-8", newline="")
    options = ["export", "--model", str(checkpoint), "--onnx"]
    cli.main([*options, "out.onnx", "--lines", "lines.txt"])
    assert "out.onnx: 100.00% of 3 lines get the class of torch" in capsys.readouterr().err
    cli.main([*options, "small.onnx", "--int8"])
    assert Path("small.onnx").stat().st_size < Path("out.onnx").stat().st_size

    Path("out.onnx").chmod(0o640)
    cli.main([*options, "out.onnx"])
    assert Path("out.onnx").stat().st_mode & 0o777 == 0o640

    Path("empty.txt").touch()
    os.mkfifo("pipe")
    for arguments, message in [
        (["new.onnx", "--lines", "empty.txt"], "no lines to compare"),
        (["new.onnx", "--lines", "none.txt"], "none.txt not found"),
        (["new.onnx", "--lines", "."], r"\. is a folder; name a file in it"),
        (["."], "is not a file; name one"),
        (["pipe"], "pipe is not a file; name one"),
        (["new.onnx", "--model", "nowhere"], "nowhere is not a folder in /"),
    ]:
        with pytest.raises(SystemExit, match=message):
            cli.main([*options, *arguments])
    assert not Path("new.onnx").exists()


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "receiptbert.onnx_export")
    with pytest.raises(UserError, match=r"onnxruntime is not installed; run .*receiptbert\[onnx\]"):
        importlib.import_module("receiptbert.onnx_export")


def test_onnx_runtime_is_told_to_ask_no_network_before_it_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "receiptbert.onnx_export")
    with pytest.raises(UserError):
        importlib.import_module("receiptbert.onnx_export")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_git_ignores_what_a_killed_export_leaves(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Path] = []

    def kill(*_: object) -> None:
        left.extend(tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_export, "_export", kill)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(checkpoint, tmp_path / "model.onnx")
    assert left
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    ignored = ["git", "-c", "core.excludesFile=/dev/null", "check-ignore", *(path.name for path in left)]
    listed = subprocess.check_output(ignored, cwd=tmp_path, text=True).splitlines()
    assert listed == [path.name for path in left]
