"""Stage 6: score the finetuned model on test."""

import pipeline
from receiptbert.corpus import SPLIT, TEST, TEXT, majority_class, read_corpus
from receiptbert.datasets import NUM_MARKS
from receiptbert.devices import choose_device
from receiptbert.hf_format import load_classifier
from receiptbert.inference import inference_loader, predict
from receiptbert.labelled import load_labelled
from receiptbert.metrics import class_scores, most_confused_pairs, scores
from receiptbert.params import Params
from receiptbert.reports import write_csv, write_json


def evaluate(params: Params) -> None:
    device = choose_device(params.runtime.device)
    model, tokenizer, names = load_classifier(pipeline.FINETUNED)
    test, targets = load_labelled(pipeline.TOKENIZED, pipeline.CORPUS, TEST, tokenizer)
    corpus = read_corpus(pipeline.CORPUS)

    loader = inference_loader(test, tokenizer, model.shape.max_seqlen - NUM_MARKS)
    predicted = predict(model.to(device), loader, tokenizer.pad_token_id, device)
    result = scores(targets, predicted, majority=majority_class(corpus))
    write_json(pipeline.METRICS / "test.json", result)

    texts = corpus.loc[corpus[SPLIT] == TEST, TEXT].tolist()
    write_csv(
        pipeline.PLOTS / "confusion.csv",
        ["actual", "predicted"],
        ((names[a], names[b]) for a, b in zip(targets, predicted, strict=True)),
    )
    write_csv(
        pipeline.PLOTS / "classes.csv",
        ["class", "f1", "precision", "recall", "rows"],
        class_scores(targets, predicted, names),
    )
    write_csv(
        pipeline.PLOTS / "confused_pairs.csv",
        ["pair", "rows"],
        (
            (f"{pair.actual} → {pair.predicted}: {pair.example}", pair.rows)
            for pair in most_confused_pairs(targets, predicted, texts, names)
        ),
    )
    print(
        f"test: weighted F1 {result['weighted_f1']:.4f}, "
        f"accuracy {result['accuracy']:.4f}, {result['rows']:,} rows"
    )


if __name__ == "__main__":
    pipeline.run_stage(evaluate)
