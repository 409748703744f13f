"""ONNX Runtime against torch on a finetuned model: weighted F1 on test, labels, megabytes, lines per second.

    python benchmarks/onnx_runtime.py [--corpus ZIP] [--model FOLDER] [--json OUT]

The model is exported in fp32 and with 8-bit weights. All three read the test lines of the corpus in the same
batches of similar length, from raw text, on the CPU, with the same number of threads (``OMP_NUM_THREADS``).
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from common import argument_parser, load_classifier_of, positive, read_archive, run_main, write_result
from receiptbert.inference import inference_loader, predict_logits
from receiptbert.metrics import f1
from receiptbert.onnx_export import CalibratedModel, OnnxModel, export_onnx
from receiptbert.splits import LABEL, SPLIT, TEST, TEXT
from timing import in_turns, print_rates, rate_of, ratio

Probabilities = npt.NDArray[np.float32]  # (n, C)


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__, model=True)
    parser.add_argument("--rounds", type=positive, default=5)
    args = parser.parse_args()
    corpus = read_archive(args.corpus)
    rows = corpus[corpus[SPLIT] == TEST]
    texts = rows[TEXT].tolist()
    saved = load_classifier_of(corpus, args)
    model, tokenizer = saved.model, saved.tokenizer
    contestants: dict[str, nn.Module] = {"torch": CalibratedModel(model, saved.temperature)}
    megabytes = {"torch": (args.model / "model.safetensors").stat().st_size / 1e6}
    with tempfile.TemporaryDirectory() as folder:
        for name, int8 in [("onnx", False), ("onnx_int8", True)]:
            path = Path(folder) / f"{name}.onnx"
            export_onnx(args.model, path, int8, texts)
            contestants[name], megabytes[name] = OnnxModel(path), path.stat().st_size / 1e6

    answers: dict[str, Probabilities] = {}

    def answer(name: str) -> None:
        loader = inference_loader(texts, tokenizer, model.shape.maxlen)
        answers[name] = predict_logits(contestants[name], loader, tokenizer.pad_token_id, torch.device("cpu"))

    rates = in_turns(
        {name: partial(rate_of, partial(answer, name), len(texts)) for name in contestants}, args.rounds
    )
    found = {name: np.array(saved.labels)[probs.argmax(axis=1)] for name, probs in answers.items()}
    figures = {
        name: {
            "weighted_f1": f1(rows[LABEL], found[name], "weighted"),
            "same_labels": float((found[name] == found["torch"]).mean()),
            "largest_difference": float(np.abs(answers[name] - answers["torch"]).max()),
            "megabytes": megabytes[name],
            "times_as_fast": ratio(rates[name], rates["torch"]),
        }
        for name in contestants
    }
    print_rates("lines per second", rates, "torch")
    for name, values in figures.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    write_result(args.json, {**figures, "rows": len(texts)}, rates)


if __name__ == "__main__":
    run_main(main)
