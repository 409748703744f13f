"""A finetuned model for ONNX Runtime, without torch; needs the extra ``onnx``.

Inputs: ``input_ids`` and ``attention_mask``, (B, S) int64, B at least 1, S from 1 to the model's positions.
Output: ``probabilities``, (B, C), at the checkpoint's temperature. Metadata: ``labels`` and ``categories``,
JSON lists of the C labels and their names, and ``max_length``, the greatest S. The tokenizer is the
checkpoint's ``tokenizer.json``.
"""

import json
import logging
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from receiptbert.errors import UserError
from receiptbert.files import atomic_file
from receiptbert.inference import inference_loader, predict_logits
from receiptbert.modeling import BertFinetuneModel
from receiptbert.saved_classifier import SavedClassifier, load_classifier
from receiptbert.tokenization import WordpieceTokenizer
from receiptbert.vocabulary import CONTINUATION

# Else it tells its maker over the network that it is used, and keeps a number of this machine for that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime
    import onnxscript  # noqa: F401  torch's exporter needs it
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process
except ImportError as error:
    raise UserError(f"{error.name} is not installed; run `pip install 'receiptbert[onnx]'`") from None

Probabilities = npt.NDArray[np.float32]

INPUTS, OUTPUT = ["input_ids", "attention_mask"], "probabilities"
TOLERANCE = 1e-4  # of a probability


class Agreement(NamedTuple):
    """How the exported model's answers to some lines differ from torch's."""

    lines: int
    same_labels: float
    """The share of lines that get the same class."""
    difference: float
    """The largest difference between the two probabilities of a class."""


class CalibratedModel(nn.Module):
    """(B, S) ids and (B, S) mask -> (B, C) probabilities at a temperature."""

    def __init__(self, model: BertFinetuneModel, temperature: float) -> None:
        super().__init__()
        self._model = model
        self._temperature = temperature

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The probabilities."""
        return (self._model(input_ids, attention_mask) / self._temperature).softmax(dim=-1)


class OnnxModel(nn.Module):
    """An exported file in place of a ``CalibratedModel``, on the CPU."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The probabilities."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        feed = dict(zip(INPUTS, (input_ids.numpy(), mask.numpy()), strict=True))
        return torch.from_numpy(self._session.run([OUTPUT], feed)[0])


def export_onnx(
    model_folder: Path, out_path: Path, int8: bool = False, texts: Sequence[str] | None = None
) -> Agreement:
    """Write the classifier of ``model_folder`` as one ONNX file, if it answers as torch does.

    Args:
        int8: store the weights of matrix products in 8 bits (not those of the last layer's attention) and
            quantize activations dynamically: about a quarter of the size, different answers to some lines.
        texts: lines to compare the answers on; None for lines of random words of the vocabulary.

    Returns:
        how well the file, quantized or not, agrees with torch.

    Raises:
        UserError: no such model, no lines, or ``out_path`` is no file; or before quantization some line gets
            another class or a probability that is off by more than ``TOLERANCE``. Nothing is written then.
    """
    saved = load_classifier(model_folder)
    model, tokenizer = saved.model, saved.tokenizer
    calibrated = CalibratedModel(model, saved.temperature).eval()
    texts = random_lines(tokenizer, model.shape.max_seqlen) if texts is None else texts
    if not texts:
        raise UserError("there are no lines to compare the answers on; name a file that has some")
    loader = inference_loader(texts, tokenizer, model.shape.maxlen)

    def answers(of: nn.Module) -> Probabilities:
        return predict_logits(of, loader, tokenizer.pad_token_id, torch.device("cpu"))

    with (
        atomic_file(out_path) as partial,
        tempfile.TemporaryDirectory(".part", f".{out_path.name}.", out_path.parent) as scratch,
    ):
        exported, prepared, quantized = (
            Path(scratch) / name for name in ("exported", "prepared", "quantized")
        )
        _export(calibrated, saved, exported)
        expected = answers(calibrated)
        agreement = agree(answers(OnnxModel(exported)), expected)
        if agreement.same_labels < 1 or not agreement.difference <= TOLERANCE:
            raise UserError(
                f"{out_path} was not written: {agreement.same_labels:.2%} of {agreement.lines:,} lines get "
                f"the class that torch gives, probabilities are off by up to {agreement.difference:.1e}; "
                "try the versions of torch, onnxscript and onnxruntime in requirements.txt"
            )
        if int8:
            quant_pre_process(exported, prepared)
            quantize_dynamic(prepared, quantized, weight_type=QuantType.QInt8)
            agreement = agree(answers(OnnxModel(quantized)), expected)
        shutil.copyfile(quantized if int8 else exported, partial)
    return agreement


def agree(found: Probabilities, expected: Probabilities) -> Agreement:
    """Compare probabilities of the same n lines, (n, C)."""
    same = found.argmax(axis=1) == expected.argmax(axis=1)
    return Agreement(len(found), float(same.mean()), float(np.abs(found - expected).max()))


def random_lines(tokenizer: WordpieceTokenizer, longest: int) -> list[str]:
    """256 lines of 0 to ``longest`` words of the vocabulary, the same ones each time."""
    generator = random.Random(0)
    words = [token for token in tokenizer.tokens if not token.startswith(("[", CONTINUATION))]
    lengths = np.linspace(0, longest, 256).astype(int).tolist()
    return [" ".join(generator.choices(words, k=k)) for k in lengths]


def _export(model: CalibratedModel, saved: SavedClassifier, path: Path) -> None:
    max_seqlen = saved.model.shape.max_seqlen
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=max_seqlen)
    example = torch.zeros(2, min(8, max_seqlen), dtype=torch.int64)
    with _quiet():
        program = torch.onnx.export(
            model,
            (example, torch.ones_like(example)),
            dynamo=True,
            input_names=INPUTS,
            output_names=[OUTPUT],
            dynamic_shapes=2 * ({0: batch, 1: length},),
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, which hold the paths of this machine
    program.model.metadata_props.update(
        labels=json.dumps(saved.labels, ensure_ascii=False),
        categories=json.dumps(saved.names, ensure_ascii=False),
        max_length=str(max_seqlen),
    )
    program.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's warnings of its own workings, and that torchvision is missing."""
    before = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript")}
    for name in before:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
