"""Four ways to ask one finetuned model, on the test lines of its corpus: do they give the same labels?

    python benchmarks/parity.py [--corpus ZIP] [--model FOLDER] [--json OUT]

``receiptbert.Classifier``, the command ``receiptbert predict``, ``transformers.pipeline`` and an ONNX export.
For the first, also weighted F1 and the expected calibration error. The model must be that of the corpus, as
``dvc exp run -S data.archive=ZIP`` leaves it.
"""

import csv
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import pipeline

from common import (
    argument_parser,
    load_classifier_of,
    print_figures,
    read_archive,
    run_main,
    write_result,
)
from receiptbert import Classifier
from receiptbert.calibration import Answers, expected_calibration_error
from receiptbert.inference import inference_loader, predict_logits
from receiptbert.metrics import f1
from receiptbert.onnx_export import OnnxModel, export_onnx
from receiptbert.saved_classifier import load_classifier
from receiptbert.splits import LABEL, SPLIT, TEST, TEXT

Ask = Callable[[Path, list[str]], list[str]]  # the categories that the model in a folder gives to texts


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__, model=True)
    args = parser.parse_args()
    corpus = read_archive(args.corpus)
    rows = corpus[corpus[SPLIT] == TEST]
    load_classifier_of(corpus, args)
    texts, true = rows[TEXT].tolist(), rows[LABEL].astype(str).to_numpy()

    predictions = Classifier.from_pretrained(args.model, device="cpu")(texts)
    labels = np.array([prediction.label for prediction in predictions])
    confidence = np.array([prediction.confidence for prediction in predictions])
    figures: dict[str, object] = {
        "corpus": args.corpus.name,
        "rows": len(rows),
        "weighted_f1": f1(true, labels, "weighted"),
        "calibration_error": expected_calibration_error(Answers(confidence, labels == true)),
    }
    categories = [prediction.category for prediction in predictions]
    others: dict[str, Ask] = {"predict": by_command, "pipeline": by_pipeline, "onnx": by_onnx}
    for name, ask in others.items():
        answers = ask(args.model, texts)
        different = sum(a != b for a, b in zip(categories, answers, strict=True))
        figures[f"other_labels_from_{name}"] = different
    print_figures(figures)
    write_result(args.json, figures)


def by_command(model: Path, texts: list[str]) -> list[str]:
    """What the command says for a CSV of the texts."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "in.csv", Path(name) / "out.csv"
        with source.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([[TEXT], *([text] for text in texts)])
        command = [sys.executable, "-m", "receiptbert", "predict", str(source), "-o", str(target)]
        subprocess.run([*command, "--model", str(model), "--device", "cpu"], check=True)
        with target.open(encoding="utf-8", newline="") as file:
            return [row["category"] for row in csv.DictReader(file)]


def by_pipeline(model: Path, texts: list[str]) -> list[str]:
    """What transformers says at its defaults, one text at a time."""
    classify = pipeline("text-classification", str(model), device="cpu", truncation=True)
    return [answer["label"] for answer in classify(texts)]


def by_onnx(folder: Path, texts: list[str]) -> list[str]:
    """What ONNX Runtime says."""
    model, tokenizer, names, *_ = load_classifier(folder)
    loader = inference_loader(texts, tokenizer, model.shape.maxlen)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.onnx"
        export_onnx(folder, path, texts=texts)
        probabilities = predict_logits(OnnxModel(path), loader, tokenizer.pad_token_id, torch.device("cpu"))
    return [names[number] for number in probabilities.argmax(axis=1)]


if __name__ == "__main__":
    run_main(main)
