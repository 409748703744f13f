"""The stage itself, in this process: teachers, what they hand on, and a kill in any of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import pipeline
from receiptbert import WordpieceTokenizer
from receiptbert.base_trainer import BaseTrainer
from receiptbert.calibration import fit_temperature
from receiptbert.finetune_trainer import FinetuneTrainer
from receiptbert.inference import inference_loader, predict_logits
from receiptbert.labelled import training_set
from receiptbert.metrics import f1
from receiptbert.params_file import load_params
from receiptbert.plan import Plan
from receiptbert.saved_classifier import load_classifier
from receiptbert.split_texts import save_texts
from receiptbert.token_store import TokenStore, store_path
from tests.conftest import SETTINGS, Cut
from tests.finetune_runs import STEPS
from tests.projects import logged


def test_a_stage_cut_off_in_any_of_its_models_ends_as_if_it_were_not(
    run_stage: Callable[..., dict[Path, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backward, steps, cuts = BaseTrainer._backward, [0], set[int]()

    def count(trainer: Any, loss: Any) -> None:
        if steps[0] in cuts:
            cuts.remove(steps[0])
            raise Cut
        steps[0] += 1
        backward(trainer, loss)

    monkeypatch.setattr(BaseTrainer, "_backward", count)
    whole = run_stage()
    assert steps == [STEPS]
    steps[0] = 0
    cuts |= {
        1,
        5,
        8,
        10,
    }  # the first teacher, the second, and the final model before and after its first epoch
    while cuts:
        with pytest.raises(Cut):
            run_stage()
    assert run_stage() == whole
    assert steps == [STEPS]  # none was done twice
    assert not list(pipeline.CHECKPOINTS.rglob("*.safetensors"))


def test_the_rate_of_finetuning_rises_and_falls(run_stage: Callable[..., dict[Path, bytes]]) -> None:
    run_stage(teachers="0", epochs="4", warmup="0.5", lr="8e-4", final_lr="0.0")
    rates = [0, 2e-4, 4e-4, 6e-4, 8e-4, 6e-4, 4e-4, 2e-4]
    assert list(logged(*Path("runs/finetune").iterdir())["lr"].values()) == pytest.approx(rates)


@pytest.mark.parametrize(
    ("texts", "min_steps", "epochs"),
    [(1000, 300, 12), (1000, 385, 24), (33, 300, 156), (5, 0, 12), (1, 1, 12)],
)
def test_few_labels_are_passed_over_more_often(texts: int, min_steps: int, epochs: int) -> None:
    p = replace(load_params(SETTINGS).finetune, epochs=12, batch_size=32, min_steps=min_steps)
    blank = TokenStore(np.empty(0, np.uint16), np.zeros(texts + 1, int), None, "v")
    assert training_set(blank, np.zeros(texts, int), p).epochs == epochs


def test_the_stage_makes_the_steps_that_few_labels_want(
    run_stage: Callable[..., dict[Path, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    run_stage(teachers="0", min_steps="5")  # 2 epochs of 2 steps each are too few
    assert "few labels: 4 epochs instead of 2, for finetune.min_steps = 5" in capsys.readouterr().err
    rates = logged(*Path("runs/finetune").iterdir())["lr"]  # no warm-up: 0.06 of 8 steps is none
    expected = [1e-6 + (8e-4 - 1e-6) * (8 - step) / 8 for step in range(8)]
    assert list(rates.values()) == pytest.approx(expected, rel=1e-4)
    judged = (pipeline.PLOTS / "finetune.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in judged] == ["2", "4"]  # as often as with enough labels
    run_stage(teachers="0", min_steps="4")
    assert "few labels" not in capsys.readouterr().err
    assert len((pipeline.PLOTS / "finetune.csv").read_text().splitlines()) == 1 + 2


def test_a_long_text_is_planned_for_and_pads_few_others_of_val(
    run_stage: Callable[..., dict[Path, bytes]],
    tokenizer: WordpieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr("receiptbert.finetuning.announce", lambda plan, _: plans.append(plan))
    shapes: list[torch.Size] = []
    eval_step = FinetuneTrainer._eval_step

    def watch(trainer: FinetuneTrainer, dataloader: Any) -> float:
        shapes.extend(ids.shape for ids, _ in dataloader)
        return eval_step(trainer, dataloader)

    monkeypatch.setattr(FinetuneTrainer, "_eval_step", watch)
    run_stage(batch_size="8", teachers="0")
    shapes.clear()
    for split in ("train", "val"):
        path = store_path(pipeline.TOKENIZED, split)
        store = TokenStore.load(path)
        assert store.labels is not None
        words = [" ".join(["чай"] * 12), *["чай"] * (len(store) - 1)]
        TokenStore.from_texts(words, tokenizer, store.labels.tolist()).save(path)
        save_texts(pipeline.TOKENIZED, split, words)
    run_stage(batch_size="8", teachers="0")
    usual, with_a_long_text = (plan.largest_batch_ratio for plan in plans)
    assert with_a_long_text > 1.5 * usual
    (long,) = {shape for shape in shapes if shape[1] == max(width for _, width in shapes)}
    assert long[0] < 8


def test_finetuning_begins_at_the_pretrained_weights(run_stage: Callable[..., dict[Path, bytes]]) -> None:
    def encoder(folder: Path) -> dict[str, torch.Tensor]:
        weights = load_file(folder / "model.safetensors")
        return {name: weight for name, weight in weights.items() if name.startswith("bert.encoder.")}

    still = {"teachers": "0", "epochs": "1", "lr": "1e-9", "final_lr": "0.0"}
    run_stage(**still)
    pretrained = encoder(pipeline.PRETRAINED)
    assert pretrained
    torch.testing.assert_close(encoder(pipeline.FINETUNED), pretrained, atol=1e-6, rtol=0)
    run_stage(**still, init="scratch")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert (encoder(pipeline.FINETUNED)[name] - pretrained[name]).abs().mean() > 0.01


def test_the_metrics_and_the_temperature_are_those_of_the_weights(
    run_stage: Callable[..., dict[Path, bytes]],
    tokenizer: WordpieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = iter([0.1, 0.7, 0.3])
    monkeypatch.setattr("receiptbert.finetuning.make_scorer", lambda *_: lambda _: ("f1", next(values)))
    run_stage(teachers="0", epochs="3", lr="1e-2")
    metrics = json.loads((pipeline.METRICS / "finetune.json").read_text())
    assert (metrics["best_epoch"], metrics["val_weighted_f1"]) == (2, 0.7)
    val = TokenStore.load(pipeline.TOKENIZED / "val.safetensors", tokenizer)
    model, loader = load_classifier(pipeline.FINETUNED)[0], inference_loader(val, tokenizer, 12)
    logits = predict_logits(model, loader, tokenizer.pad_token_id, torch.device("cpu"))
    assert val.labels is not None
    loss = cross_entropy(torch.from_numpy(logits), torch.from_numpy(val.labels))
    assert metrics["val_loss"] == pytest.approx(loss.item(), abs=1e-4)
    assert metrics["temperature"] == pytest.approx(fit_temperature(logits, val.labels), rel=1e-3)
    assert metrics["temperature"] != 1
    assert load_classifier(pipeline.FINETUNED).temperature == metrics["temperature"]


@pytest.mark.parametrize("teachers", ["0", "1"])
def test_the_temperature_is_not_that_of_classes_nobody_has_taught(
    run_stage: Callable[..., dict[Path, bytes]],
    tokenizer: WordpieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    teachers: str,
) -> None:
    train, val = (
        TokenStore.load(pipeline.TOKENIZED / f"{split}.safetensors", tokenizer) for split in ("train", "val")
    )
    assert train.labels is not None
    assert val.labels is not None
    taught = replace(train, labels=np.where(train.labels == 2, 0, train.labels))
    taught.save(pipeline.TOKENIZED / "train.safetensors")
    fitted: list[Any] = []
    monkeypatch.setattr("finetune.fit_temperature", lambda *arguments: fitted.append(arguments) or 1.0)
    run_stage(teachers=teachers)
    ((logits, true),) = fitted
    assert true.tolist() == val.labels[val.labels != 2].tolist() != val.labels.tolist()
    assert len(logits) == len(true)


def test_the_score_that_chooses_the_epoch_is_that_of_val(
    run_stage: Callable[..., dict[Path, bytes]], tokenizer: WordpieceTokenizer
) -> None:
    run_stage(teachers="0", epochs="10", lr="1e-2", batch_size="20")
    val = TokenStore.load(pipeline.TOKENIZED / "val.safetensors", tokenizer)
    model, loader = load_classifier(pipeline.FINETUNED).model, inference_loader(val, tokenizer, 12)
    logits = predict_logits(model, loader, tokenizer.pad_token_id, torch.device("cpu"))
    assert val.labels is not None
    predicted = logits.argmax(axis=1)
    assert len(set(predicted)) > 1
    score = f1(val.labels, predicted, "weighted")
    metrics = json.loads((pipeline.METRICS / "finetune.json").read_text())
    assert metrics["val_weighted_f1"] == pytest.approx(score, abs=1e-5) != f1(val.labels, predicted, "macro")
