"""Each stage in this process: what it makes of its inputs."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

from receiptbert import Classifier, Collator, Trainer, WordpieceTokenizer
from receiptbert.corpus import read_corpus
from receiptbert.corpus_facts import Classes, load_longest
from receiptbert.errors import UserError
from receiptbert.finetuning import Finetuning
from receiptbert.labelled import TrainingSet, load_labelled, majority_class, training_set
from receiptbert.onednn import KEPT_SHAPES
from receiptbert.params_file import load_params
from receiptbert.pretraining import Pretraining, min_text_length
from receiptbert.split_texts import load_texts
from receiptbert.splits import LABEL, LABELLED, SPLIT, SPLITS, TEST, TEXT, TRAIN
from receiptbert.token_store import TokenStore
from tests.conftest import ROOT
from tests.projects import STAGES, contents, logged, metric, run_here, set_params
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
    assert "the temperature 0.01," in (project / "metrics/MODEL_CARD.md").read_text()


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


@pytest.mark.parametrize(("mask_prob", "length"), [(0.15, 5), (0.5, 1), (0.25, 3), (0.01, 69)])
def test_min_text_length(mask_prob: float, length: int) -> None:
    assert min_text_length(mask_prob) == length


def test_short_texts_are_left_out_and_counted(project: Path) -> None:
    set_params(project, {"pretrain.mask_prob": "0.15"})
    run_here(STAGES["pretrain"], project)
    lengths = TokenStore.load(project / "data/tokenized/unsupervised.safetensors").lengths
    told = metric(project, "pretrain")
    assert (told["min_length"], told["texts_below_min_length"]) == (5, (lengths < 5).sum())
    assert (lengths < 5).any()


def make_pretraining(project: Path) -> Pretraining:
    tokenizer = WordpieceTokenizer.from_pretrained(project / "models/tokenizer")
    return Pretraining(
        load_params(project / "params.yaml"),
        TokenStore.load(project / "data/tokenized/unsupervised.safetensors", tokenizer),
        tokenizer,
        load_longest(project / "data/tokenized/lengths.json"),
        torch.device("cpu"),
    )


def test_pretraining_is_scored_on_the_texts_held_out(tiny_project: Path) -> None:
    pretraining, seeds = make_pretraining(tiny_project), []

    def evaluate(loader: Any) -> dict[str, float]:
        assert loader is pretraining._held_out_loader
        seeds.append(torch.initial_seed())
        return {"mlm_loss": 3.0}

    for before in (1, 2):  # the same masks whatever came before
        torch.manual_seed(before)
        assert pretraining.evaluate(cast(Any, SimpleNamespace(evaluate=evaluate))) == {"mlm_loss": 3.0}
    assert seeds == 2 * [load_params(tiny_project / "params.yaml").pretrain.seed]


def test_the_plan_counts_steps_of_accumulated_batches(project: Path) -> None:
    set_params(project, {"pretrain.batch_size": "40", "pretrain.epochs": "3", "pretrain.max_steps": "9999"})
    batches = make_pretraining(project).steps // 3
    set_params(project, {"pretrain.num_accum_steps": str(batches - 1)})
    assert make_pretraining(project).steps == 3 * 2  # the last step of an epoch has one batch


def test_each_setting_of_masking_reaches_the_collator(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of them have equal values as shipped, so that a swap would change nothing."""
    settings = {"mask_prob": 0.4, "random_prob": 0.2, "keep_unchanged_prob": 0.3}
    kinds = {"whole_words": True, "letters_only": False}
    set_params(project, {f"pretrain.{key}": str(value) for key, value in settings.items()})
    set_params(project, {f"pretrain.{key}": str(value).lower() for key, value in kinds.items()})
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "receiptbert.pretraining.Collator",
        lambda tokenizer, **kwargs: (given.append(kwargs), Collator(tokenizer, **kwargs))[1],
    )
    make_pretraining(project)
    assert given == [settings | kinds]


def test_passes_are_not_recorded_where_memory_lacks(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiptbert.pretraining.can_capture", lambda *_: True)
    monkeypatch.setattr(Trainer, "_make_graphs", lambda _: "graphs")
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: None)
    pretraining = make_pretraining(tiny_project)
    recorded = pretraining.plan.total_memory
    plain = dataclasses.replace(pretraining.plan, cuda_graphs=False).total_memory
    for free, expected in ((recorded + 1, "graphs"), ((recorded + plain) / 2, None)):
        monkeypatch.setattr("receiptbert.pretraining.free_memory", lambda _, free=free: free)
        pretraining.require_memory()
        _, trainer = pretraining.train(cast(Any, None), cast(Any, None))
        assert trainer._graphs == expected


def test_apex_accumulates_batches_in_a_single_process_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several, it would keep the sums of all batches but the last from being averaged."""
    monkeypatch.setattr("receiptbert.pretraining.check_amp_backend", lambda *_: None)
    set_params(project, {"runtime.amp_backend": "apex", "pretrain.num_accum_steps": "2"})
    make_pretraining(project)
    monkeypatch.setattr("receiptbert.pretraining.num_processes", lambda: 2)
    with pytest.raises(
        UserError, match=r"apex, which cannot accumulate .*; set torch, or pretrain\.num_accum_steps to 1$"
    ):
        make_pretraining(project)
    set_params(project, {"pretrain.num_accum_steps": "1"})
    make_pretraining(project)


def make_finetuning(project: Path) -> tuple[Finetuning, TrainingSet]:
    params = load_params(project / "params.yaml")
    source, device = project / "models/pretrained", torch.device("cpu")
    finetuning = Finetuning(params.finetune, source, 100, device, params.runtime)
    train = load_labelled(project / "data/tokenized", "train", finetuning.tokenizer)
    return finetuning, training_set(*train, params.finetune)


def test_plans_tell_processes_of_all_hosts_from_those_of_this_one(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pretraining", "finetuning"):
        monkeypatch.setattr(f"receiptbert.{module}.num_processes", lambda: 4)
        monkeypatch.setattr(f"receiptbert.{module}.num_processes_here", lambda: 2)
    finetuning, data = make_finetuning(tiny_project)
    for plan in (make_pretraining(tiny_project).plan, finetuning._plan(data)):
        assert (plan.processes, plan.processes_here) == (4, 2)


def test_finetuning_records_no_passes_where_memory_lacks(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiptbert.finetuning.can_capture", lambda *_: True)
    finetuning, data = make_finetuning(tiny_project)
    recorded = finetuning._plan(data)
    plain = dataclasses.replace(recorded, cuda_graphs=False)
    for free, expected in ((recorded.total_memory + 1, True), (plain.total_memory + 1, False)):
        monkeypatch.setattr("receiptbert.finetuning.free_memory", lambda _, free=free: free)
        finetuning.require_memory(data)
        assert finetuning._cuda_graphs == expected


def test_texts_held_out_are_never_trained_on(tiny_project: Path) -> None:
    pretraining = make_pretraining(tiny_project)

    def texts_of(loader: Any) -> set[tuple[int, ...]]:
        texts = loader.dataset._texts
        return {tuple(texts.texts(torch.tensor([i]), None)[0].tolist()) for i in range(len(loader.dataset))}

    held_out = texts_of(pretraining._held_out_loader)
    assert held_out
    assert not held_out & texts_of(pretraining._loader)


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


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process hears of its parent's end")
def test_a_stage_asks_to_end_with_dvc_before_it_imports_what_takes_long() -> None:
    told = {"DVC_STAGE", "TORCHELASTIC_RUN_ID"}
    environment = {name: value for name, value in os.environ.items() if name not in told}
    environment["PYTHONPATH"] = str(ROOT / "src")
    for name, expected in (("DVC_STAGE", signal.SIGTERM), ("TORCHELASTIC_RUN_ID", signal.SIGTERM), ("X", 0)):
        said = subprocess.check_output(
            [sys.executable, "-c", SIGNAL_OF_PARENT], env=environment | {name: "x"}, text=True
        )
        assert said.split() == [str(int(expected)), "False"]


def test_batches_of_pretraining_are_those_of_its_seed(project: Path) -> None:
    def batches(seed: int) -> list[list[int]]:
        set_params(project, {"pretrain.seed": str(seed)})
        return list(cast(Any, make_pretraining(project)._loader).batch_sampler)

    set_params(project, {"pretrain.batch_size": "10"})
    assert batches(1) == batches(1) != batches(0)


def test_batches_have_as_many_tokens_as_are_shown(project: Path) -> None:
    set_params(project, {"pretokenize.max_length_quantile": "0.3", "pretrain.batch_size": "10"})
    run_here(STAGES["pretokenize"], project)
    shown = [ids.numel() for ids, *_ in cast(Any, make_pretraining(project)._loader)]
    assert max(shown) < 1.5 * min(shown)


def test_what_is_told_of_pretraining_is_what_its_log_has(project: Path) -> None:
    set_params(project, {"pretrain.batch_size": "10"})
    run_here(STAGES["pretrain"], project)
    log, told = logged(*(project / "runs/pretrain").iterdir()), metric(project, "pretrain")
    assert told["steps"] == len(log["MLM"]) > 1
    assert told["tokens_seen"] == sum(log["tokens"].values())
    curve = pd.read_csv(project / "metrics/plots/pretrain.csv")  # of fewer than 200 steps, each
    assert curve["step"].tolist() == list(log["MLM"])
    for part in ("MLM", "SOP"):
        assert curve[part].tolist() == pytest.approx(list(log[part].values()), abs=1e-5)
