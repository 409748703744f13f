"""The model card: what a person must know before trusting the model, in Hugging Face's format.

YAML front matter, then Markdown. Every number comes from the run that writes the card; only the versions of
packages are the environment's, so that equal models have equal cards in one environment.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import yaml

from receiptbert.calibration import BINS
from receiptbert.encoder import BertShape, parameter_counts
from receiptbert.evaluation import Evaluation
from receiptbert.metrics import BOOTSTRAP_DRAWS, ClassScore, ConfusedPair
from receiptbert.splits import SPLITS, TRAIN, UNSUPERVISED, VAL

# Names, and kinds as Hugging Face knows them.
SCORES = {
    "weighted_f1": ("weighted F1", "f1"),
    "macro_f1": ("macro F1", "f1"),
    "accuracy": ("accuracy", "accuracy"),
}
PACKAGES = ["torch", "tokenizers", "transformers", "safetensors"]
SHOWN = 10  # categories and errors
MIN_ROWS = 10  # of a category whose score is worth showing
# What the card says about the data.
COUNTS = [
    "rows",
    "distinct_texts",
    "classes",
    "train_rows_per_class",
    "rows_left_out",
    "largest_class_share",
    "classes_absent_from_train",
    "test_rows_seen_elsewhere",
    "blank_texts",
]


def model_card(result: Evaluation, shape: BertShape, data: Mapping[str, Any], archive: str) -> str:
    """The card as text; equal arguments in one environment give equal text.

    Args:
        result: on test.
        shape: of the encoder of the model that was evaluated.
        data: the counts of ``metrics/data.json``, those of ``COUNTS`` at least.
        archive: the name of the corpus's archive.
    """
    sections = [
        _introduction(result, shape),
        _data(data, archive),
        _scores(result),
        _worst(result.classes, len(result.names)),
        _confusions(result.pairs),
        _confidence(result),
        _limits(result),
        USE,
        _versions(),
    ]
    return f"---\n{_front_matter(result)}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(result: Evaluation) -> str:
    values = [
        {"type": kind, "name": name, "value": round(result.scores[key], 4)}
        for key, (name, kind) in SCORES.items()
    ]
    task = {"type": "text-classification", "name": "Receipt lines to product categories"}
    dataset = {"type": "receipt-lines", "name": "the corpus it was finetuned on", "split": "test"}
    evaluated = {"task": task, "dataset": dataset, "metrics": values}
    content = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["receiptbert", "bert", "receipts"],
        "metrics": ["f1", "accuracy"],
        "model-index": [{"name": "receiptbert", "results": [evaluated]}],
    }
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False)


def _introduction(result: Evaluation, shape: BertShape) -> str:
    parts = parameter_counts(shape, len(result.names))
    rows = [(part, f"{count:,}") for part, count in {**parts, "all": sum(parts.values())}.items()]
    text = f"""A BERT that sorts receipt lines into {len(result.names):,} product categories:
        {shape.num_hidden_layers} layers of width {shape.hidden_size:,}, a vocabulary of {shape.vocab_size:,}
        entries. It reads the first {shape.maxlen} tokens of a line. The receiptbert pipeline made it and
        wrote this card, with scores on the test split."""
    return _section("# Receipt lines to product categories", text, _table(["part", "parameters"], rows))


def _data(data: Mapping[str, Any], archive: str) -> str:
    counts = {"rows": data["rows"], "distinct texts": data["distinct_texts"], "categories": data["classes"]}
    rows = [
        (what, *(f"{of[split]:,}" if split in of else "" for split in SPLITS)) for what, of in counts.items()
    ]
    per_class, left_out = data["train_rows_per_class"], data["rows_left_out"]
    delivered = f"""The corpus is {_plain(archive)}. Rows and texts are counted as it was delivered. Blank
        texts among them: {data["blank_texts"]:,}; test rows whose text is in another split too:
        {data["test_rows_seen_elsewhere"]:,}. Rows then left out because their text is held out in val or
        test: {left_out[TRAIN]:,} train, {left_out[VAL]:,} val, {left_out[UNSUPERVISED]:,} unsupervised."""
    median = f"{per_class['median']:,.1f}".removesuffix(".0")
    used = f"""Categories are counted over the rows that are left. A category has {per_class["smallest"]:,} to
        {per_class["largest"]:,} train rows (median {median}); the largest makes up
        {data["largest_class_share"]:.1%} of train. Categories of val or test without train rows:
        {data["classes_absent_from_train"]:,}."""
    return _section("## Data", _table(["", *SPLITS], rows), delivered, used)


def _scores(result: Evaluation) -> str:
    rows = [
        (name, f"{result.scores[key]:.3f}", "{:.3f} to {:.3f}".format(*result.intervals[key]))
        for key, (name, _) in SCORES.items()
    ]
    text = f"""{result.scores["rows"]:,} rows. Always answering the most frequent category has weighted F1
        {result.scores["majority_weighted_f1"]:.3f}. The intervals are percentiles of
        {BOOTSTRAP_DRAWS:,} bootstrap samples, from a fixed seed. They cover chance in the choice of test
        lines, not chance in training. The interval of macro F1 may lie low: a bootstrap sample may hold
        few rows of a rare category or none, which costs more F1 than it gains."""
    return _section("## Scores on test", _table(["score", "value", "95% interval"], rows), text)


def _worst(classes: Sequence[ClassScore], num_classes: int) -> str:
    common = [row for row in classes if row.rows >= MIN_ROWS]
    rows = [
        (_plain(row.name), f"{row.f1:.2f}", f"{row.precision:.2f}", f"{row.recall:.2f}", f"{row.rows:,}")
        for row in common[: -SHOWN - 1 : -1]
    ]
    text = f"""Among categories with at least {MIN_ROWS} test rows. Number of those with fewer,
        too few for a score of their own: {num_classes - len(common):,}."""
    header = ["category", "F1", "precision", "recall", "test rows"]
    return _section("## The worst categories", _table(header, rows), text)


def _confusions(pairs: Sequence[ConfusedPair]) -> str:
    rows = [
        (_plain(pair.actual), _plain(pair.predicted), f"{pair.rows:,}", _plain(pair.example))
        for pair in pairs[:SHOWN]
    ]
    header = ["category", "predicted as", "test rows", "example"]
    return _section("## The most frequent errors", _table(header, rows))


def _confidence(result: Evaluation) -> str:
    rows = [(f"{row.threshold:.2f}", f"{row.coverage:.1%}", f"{row.accuracy:.1%}") for row in result.coverage]
    before, after = result.scores["ece_uncalibrated"], result.scores["ece"]
    why = "since val determined no other" if result.temperature == 1 else "which was fitted on val"
    what = f"""Confidence is the probability of the answer: the softmax of the logits divided by the
        temperature {result.temperature:g}, {why}. On test it is off by {after:.3f} on
        average (expected calibration error, {BINS} bins); at temperature 1 by {before:.3f}."""
    use = """If answers below a confidence are left to a person (`receiptbert predict --min-confidence`), this
        share of the test lines keeps its answer, and that many of those answers are right:"""
    header = ["confidence at least", "lines kept", "accuracy of these"]
    return _section("## How far to trust the confidence", what, use, _table(header, rows))


def _limits(result: Evaluation) -> str:
    limits = [
        """The scores hold for lines like those of test. Expect lower ones for other shops, other cash
        registers, another language or next year's products: label a few hundred such lines and measure.""",
        f"""Every line gets one of the {len(result.names):,} categories, even a line that belongs to none.""",
        f"""Weighted F1 is dominated by frequent categories. With all categories weighted equally (macro F1)
        it is {result.scores["macro_f1"]:.3f}.""",
        """One temperature serves all categories, so confidence can be too high in some and too low in
        others.""",
    ]
    return _section("## Limits", "\n".join(f"- {_folded(limit)}" for limit in limits))


USE = """## How to load it

```python
from receiptbert import Classifier

classify = Classifier.from_pretrained("models/finetuned")
print(classify(["МОЛОКО 3,2% 1Л"]))
```

or without receiptbert:

```python
from transformers import pipeline

classify = pipeline("text-classification", "models/finetuned", truncation=True)
print(classify(["МОЛОКО 3,2% 1Л"]))
```

Both choose the same class, but the first gives none to a blank text; the scores of the second are at
temperature 1 (the temperature is `classify.model.config.softmax_temperature`)."""


def _versions() -> str:
    # Of a package that the path has twice, the first is the one imported.
    installed = [next(iter(metadata.distributions(name=name)), None) for name in PACKAGES]
    found = [(package.name, package.version) for package in installed if package]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    # The part after a plus names a build, for this or that GPU.
    rows = [("Python", python), *((name, version.split("+")[0]) for name, version in found)]
    return _section("## Versions", _table(["package", "version"], rows))


def _section(heading: str, *parts: str) -> str:
    """Join heading and parts: paragraphs become one line each, tables and lists keep their lines."""
    return "\n\n".join(
        [heading, *(part if part.startswith(("|", "- ")) else _folded(part) for part in parts)]
    )


def _folded(text: str) -> str:
    return " ".join(text.split())


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """A text that we have not written, for the card: one line, with Markdown and HTML escaped."""
    one_line = _folded("".join(c if c.isprintable() else " " for c in text))
    return re.sub(r"([\\`*_\[\]<>|~&$#])", r"\\\1", one_line)
