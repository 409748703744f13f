"""Stage 6: score the finetuned model on test, and write its card."""

from pathlib import Path

import pipeline
from receiptbert.devices import choose_device
from receiptbert.errors import UserError
from receiptbert.evaluation import Evaluation
from receiptbert.files import atomic
from receiptbert.inference import inference_loader, predict_logits
from receiptbert.labelled import load_labelled, majority_class
from receiptbert.model_card import COUNTS, model_card
from receiptbert.onednn import keep_shapes
from receiptbert.params import Params
from receiptbert.reports import read_json, write_csv, write_json
from receiptbert.saved_classifier import load_classifier
from receiptbert.split_texts import load_texts
from receiptbert.splits import TEST

DATA = pipeline.METRICS / "data.json"


def evaluate(params: Params) -> str:
    keep_shapes("fp32")  # that of all scores
    device = choose_device(params.runtime.device)
    data = read_json(DATA)
    if missing := [name for name in COUNTS if name not in data]:
        raise UserError(f"{DATA} lacks {missing[0]}; run `dvc repro`")
    saved = load_classifier(pipeline.FINETUNED)
    model, tokenizer, names = saved.model, saved.tokenizer, saved.names
    test, targets = load_labelled(pipeline.TOKENIZED, TEST, tokenizer)
    if (classes := int(targets.max(initial=0)) + 1) > len(names):
        raise UserError(
            f"{pipeline.FINETUNED} knows {len(names)} classes, the corpus has {classes} or more; "
            "run `dvc repro`"
        )
    loader = inference_loader(test, tokenizer, model.shape.maxlen)
    result = Evaluation(
        logits=predict_logits(model.to(device), loader, tokenizer.pad_token_id, device),
        true=targets,
        texts=load_texts(pipeline.TOKENIZED, TEST, len(test)),
        names=names,
        majority=majority_class(pipeline.TOKENIZED),
        temperature=saved.temperature,
    )

    card = model_card(result, model.shape, data, Path(params.data.archive).name)
    write_json(pipeline.METRICS / "test.json", result.scores)
    for name, table in result.plots().items():
        write_csv(pipeline.PLOTS / f"{name}.csv", table.header, table.rows)
    with atomic(pipeline.METRICS / "MODEL_CARD.md") as partial:
        partial.write_text(card, encoding="utf-8")
    scores = result.scores
    return (
        f"test: weighted F1 {scores['weighted_f1']:.4f}, accuracy {scores['accuracy']:.4f}, "
        f"calibration error {scores['ece']:.4f}, {scores['rows']:,} rows"
    )


if __name__ == "__main__":
    pipeline.run_stage(evaluate)
