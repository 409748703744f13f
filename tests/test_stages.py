"""Each stage in this process: what it makes of its inputs."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from receiptbert import Classifier, WordpieceTokenizer
from receiptbert.corpus import read_corpus
from receiptbert.corpus_facts import Classes, load_longest
from receiptbert.labelled import majority_class
from receiptbert.onednn import KEPT_SHAPES
from receiptbert.split_texts import load_texts
from receiptbert.splits import LABEL, LABELLED, SPLIT, SPLITS, TEST, TEXT, TRAIN
from receiptbert.token_store import TokenStore
from tests.conftest import ROOT, Cut
from tests.projects import STAGES, contents, metric, refusal, run_here, set_params
from tests.small_models import change_json

# 2 is PR_GET_PDEATHSIG of linux/prctl.h.
SIGNAL_OF_PARENT = """
import ctypes, pipeline, sys
asked = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(asked))
print(asked.value, "torch" in sys.modules)
"""


def test_a_stage_takes_no_arguments(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "src/unzip.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("unzip: error: stages take no arguments; the settings are in params.yaml")


def test_a_class_id_is_the_place_of_its_label_and_each_text_has_its_tokens(tiny_project: Path) -> None:
    corpus = read_corpus(tiny_project / "data/raw/data.csv")
    labels = Classes.load(tiny_project / "data/tokenized/classes.json").labels
    tokenizer = WordpieceTokenizer.from_pretrained(tiny_project / "models/tokenizer")
    for split in LABELLED:
        rows = corpus[corpus[SPLIT] == split]
        store = TokenStore.load(tiny_project / f"data/tokenized/{split}.safetensors", tokenizer)
        assert store.labels is not None
        assert [labels[number] for number in store.labels] == rows[LABEL].tolist()
        assert [store[i].tolist() for i in range(len(store))] == [tokenizer(text) for text in rows[TEXT]]


def test_what_is_told_of_tokens_is_true(tiny_project: Path) -> None:
    corpus = read_corpus(tiny_project / "data/raw/data.csv")
    tokenizer = WordpieceTokenizer.from_pretrained(tiny_project / "models/tokenizer")
    lengths = {
        split: np.array([len(tokenizer(text)) for text in corpus.loc[corpus[SPLIT] == split, TEXT]])
        for split in SPLITS
    }
    of_unsupervised = lengths["unsupervised"]
    longest = load_longest(tiny_project / "data/tokenized/lengths.json")
    told = metric(tiny_project, "tokens")
    assert told["max_length"] == longest
    store = TokenStore.load(tiny_project / "data/tokenized/unsupervised.safetensors")
    assert store.lengths.tolist() == sorted(of_unsupervised)
    assert (of_unsupervised <= longest).mean() >= 0.995 > (of_unsupervised < longest).mean()
    assert told["tokens_per_text"] == {split: pytest.approx(many.mean()) for split, many in lengths.items()}
    assert told["texts_above_max_length"] == {split: sum(many > longest) for split, many in lengths.items()}
    histogram = pd.read_csv(tiny_project / "metrics/plots/lengths.csv")
    assert np.repeat(histogram["tokens"], histogram["texts"]).tolist() == sorted(of_unsupervised)


def test_whoever_the_umask_lets_may_read_what_the_stages_write(tiny_project: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    outputs = [
        path
        for folder in ("data/raw", "data/tokenized", "models", "metrics")
        for path in (tiny_project / folder).rglob("*")
        if path.is_file()
    ]
    of_tokenizer = {path.name for path in outputs if path.is_relative_to(tiny_project / "models/tokenizer")}
    assert of_tokenizer == {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert {path.suffix for path in outputs} >= {".safetensors", ".json", ".csv", ".txt"}
    assert {path.stat().st_mode for path in outputs} == {(tmp_path / "plain").stat().st_mode}


def test_the_majority_class_is_the_most_frequent_of_train(tiny_project: Path) -> None:
    corpus = read_corpus(tiny_project / "data/raw/data.csv")
    rows = corpus.loc[corpus[SPLIT] == TRAIN, LABEL].value_counts()
    tokenized = tiny_project / "data/tokenized"
    label = Classes.load(tokenized / "classes.json").labels[majority_class(tokenized)]
    assert rows[label] == rows.max() > rows.min()


def test_evaluate_keeps_the_code_of_few_shapes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEPT_SHAPES, "of before")  # so that it is put back afterwards
    monkeypatch.delenv(KEPT_SHAPES)
    run_here(STAGES["evaluate"], project)
    assert os.environ[KEPT_SHAPES] == "16"


def test_evaluate_takes_the_temperature_of_the_checkpoint(project: Path) -> None:
    change_json(project / "models/finetuned/config.json", softmax_temperature=0.01)
    run_here(STAGES["evaluate"], project)
    scores = metric(project, "test")
    assert scores["nll"] != scores["nll_uncalibrated"]
    card = (project / "metrics/MODEL_CARD.md").read_text()
    assert "the temperature 0.01," in card
    assert "The corpus is tiny.zip." in card  # without its folder


def test_evaluate_cuts_texts_that_are_too_long_for_the_model(project: Path) -> None:
    corpus = pd.read_csv(project / "data/raw/data.csv", dtype=str, keep_default_na=False)
    corpus.loc[corpus[SPLIT] == TEST, TEXT] = "молоко " * 99
    corpus.to_csv(project / "data/raw/data.csv", index=False)
    for stage in ("pretokenize", "evaluate"):
        run_here(STAGES[stage], project)
    predicted = pd.read_csv(project / "metrics/plots/confusion.csv")["predicted"]
    assert len(predicted) == (corpus[SPLIT] == TEST).sum()
    assert predicted.nunique() == 1


def test_evaluate_compares_with_the_majority_class(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = TokenStore.load(project / "data/tokenized/test.safetensors").labels
    assert labels is not None
    counts = np.bincount(labels)
    one = int(np.flatnonzero((counts > 0) & (counts != counts[0]))[0])
    monkeypatch.setattr("evaluate.majority_class", lambda _: one)
    run_here(STAGES["evaluate"], project)
    share = counts[one] / len(labels)
    scores = metric(project, "test")
    assert scores["majority_weighted_f1"] == pytest.approx(share * 2 * share / (1 + share), abs=1e-5)


def test_the_texts_of_each_split_lie_beside_their_ids(tiny_project: Path) -> None:
    corpus = read_corpus(tiny_project / "data/raw/data.csv")
    for split in SPLITS:
        expected = corpus.loc[corpus[SPLIT] == split, TEXT].tolist()
        assert load_texts(tiny_project / "data/tokenized", split, len(expected)) == expected


def test_a_renamed_category_changes_nothing_that_pretraining_reads(project: Path) -> None:
    before = contents(project)
    categories = project / "data/raw/categories.csv"
    categories.write_text(categories.read_text().replace("Молоко", "Молоко и сливки"))
    run_here(STAGES["pretokenize"], project)
    after = contents(project)
    changed = {path for path in after if after[path] != before[path]}
    assert changed == {"data/raw/categories.csv", "data/tokenized/classes.json"}


def test_a_corrected_label_of_test_changes_nothing_that_finetuning_reads(project: Path) -> None:
    before = contents(project)
    corpus = project / "data/raw/data.csv"
    rows = corpus.read_text().splitlines(keepends=True)
    at = next(number for number, row in enumerate(rows) if row.rstrip().endswith(",test"))
    text, label, split = rows[at].rsplit(",", 2)
    other = next(row.rsplit(",", 2)[1] for row in rows if row.endswith("train\n") and f",{label}," not in row)
    rows[at] = f"{text},{other},{split}"
    corpus.write_text("".join(rows))
    run_here(STAGES["pretokenize"], project)
    after = contents(project)
    changed = {path for path in after if after[path] != before[path]}
    assert changed == {"data/raw/data.csv", "data/tokenized/test.safetensors"}


def test_what_is_scored_is_what_the_classifier_answers(tiny_project: Path) -> None:
    corpus = read_corpus(tiny_project / "data/raw/data.csv")
    test = corpus[corpus[SPLIT] == TEST]
    classes = Classes.load(tiny_project / "data/tokenized/classes.json")
    names = dict(zip(classes.labels, classes.names, strict=True))
    classify = Classifier.from_pretrained(tiny_project / "models/finetuned", device="cpu")
    confusion = pd.read_csv(tiny_project / "metrics/plots/confusion.csv", dtype=str)
    assert confusion["actual"].tolist() == [names[label] for label in test[LABEL]]
    assert confusion["predicted"].tolist() == [answer.category for answer in classify(test[TEXT].tolist())]


def test_a_stage_asks_to_end_with_dvc_before_it_imports_what_takes_long() -> None:
    told = {"DVC_STAGE", "TORCHELASTIC_RUN_ID"}
    environment = {name: value for name, value in os.environ.items() if name not in told}
    environment["PYTHONPATH"] = str(ROOT / "src")
    for name, expected in (("DVC_STAGE", signal.SIGTERM), ("TORCHELASTIC_RUN_ID", signal.SIGTERM), ("X", 0)):
        said = subprocess.check_output(
            [sys.executable, "-c", SIGNAL_OF_PARENT], env=environment | {name: "x"}, text=True
        )
        assert said.split() == [str(int(expected)), "False"]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("writes", ["save_pretrained", "write_csv"])  # the first output and the last
def test_a_training_whose_outputs_cannot_be_written_is_not_done_again(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    writes: str,
) -> None:
    before = contents(project)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics")

    with monkeypatch.context() as patch:
        patch.setattr(f"{stage}.{writes}", fail)
        assert "No space left" in refusal(STAGES[stage], project)
    capsys.readouterr()
    run_here(STAGES[stage], project)
    assert "resumed after step" in capsys.readouterr().err
    assert contents(project) == before


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_training_keeps_the_memory_that_it_frees(
    project: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def note(device: torch.device, precision: str) -> None:
        assert (device.type, precision) == ("cpu", "bf16")
        raise Cut

    monkeypatch.setattr(f"{stage}.keep_freed_memory", note)
    set_params(project, {f"{stage}.precision": "bf16"})
    with pytest.raises(Cut):
        run_here(STAGES[stage], project)
