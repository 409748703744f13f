"""Teachers of the stage finetune: what they learn, what they label, what the final model takes."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline
from receiptbert import BertFinetuneModel, WordpieceTokenizer, distillation
from receiptbert.distillation import teacher_seed
from receiptbert.finetune_trainer import FinetuneTrainer
from receiptbert.finetuning import Finetuning
from receiptbert.labelled import TrainingSet
from receiptbert.linear_teacher import LinearTeacher
from receiptbert.partial_embedding import only_tokens, tokens_in
from receiptbert.plan import Plan
from receiptbert.sampling import MixtureBatchSampler
from receiptbert.token_store import TokenStore
from tests.finetune_runs import SIZES
from tests.small_trainings import labelled


def test_teachers_are_seen_in_the_metrics_and_the_model(run_stage: Callable[..., dict[Path, bytes]]) -> None:
    metrics, weights = pipeline.METRICS / "finetune.json", pipeline.FINETUNED / "model.safetensors"
    taught, alone = run_stage(teachers="1"), run_stage(teachers="0")
    of_teachers = {"teacher_val_weighted_f1", "linear_val_weighted_f1"}
    assert json.loads(taught[metrics]).keys() - json.loads(alone[metrics]).keys() == of_teachers
    assert json.loads(taught[metrics])["linear_val_weighted_f1"] > 0.5
    assert taught[weights] != alone[weights]
    # The teacher is the model that this seed gives without teachers.
    as_teacher = json.loads(run_stage(teachers="0", seed=str(teacher_seed(0, 1)))[metrics])
    assert json.loads(taught[metrics])["teacher_val_weighted_f1"] == as_teacher["val_weighted_f1"]


def test_each_unsupervised_text_has_the_answer_of_both_kinds_of_teachers(
    run_stage: Callable[..., dict[Path, bytes]],
    texts: list[str],
    tokenizer: WordpieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class_of = {tuple(tokenizer(line)): target for line, target in zip(*labelled(texts), strict=True)}
    unsupervised = [tuple(tokenizer(line)) for line in labelled(texts)[0][-SIZES["unsupervised"] :]]
    pool, found = distillation.distillation_pool, []

    def note(train: Any, store: TokenStore, probabilities: Any) -> Any:
        tokens = [tuple(store[i].tolist()) for i in range(len(store))]
        assert sorted(tokens) == sorted(unsupervised)
        true = np.array([class_of[text] for text in tokens])
        found.append(((probabilities.argmax(axis=1) == true).mean(), probabilities.sum(axis=1)))
        return pool(train, store, probabilities)

    monkeypatch.setattr(distillation, "distillation_pool", note)
    run_stage(teachers="2")
    monkeypatch.setattr(LinearTeacher, "probabilities", lambda _, texts: np.zeros((len(texts), 3)))
    run_stage(teachers="1", epochs="20", lr="1e-2", batch_size="20", dropout="0.0")
    (linear, totals), (bert, halves) = found
    assert linear > 0.6  # a third would be chance
    assert bert > 0.6
    np.testing.assert_allclose(totals, 1, rtol=1e-5)
    np.testing.assert_allclose(halves, 0.5, rtol=1e-5)


def test_teachers_learn_labels_and_the_final_model_what_the_teachers_say_too(
    run_stage: Callable[..., dict[Path, bytes]],
    tokenizer: WordpieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn, trainers, trained = [], [], []

    def make_batches(*arguments: Any, **kwargs: Any) -> MixtureBatchSampler:
        first_epoch = list(MixtureBatchSampler(*arguments, **kwargs))
        drawn.append((sum(map(len, first_epoch)), len(first_epoch)))
        return MixtureBatchSampler(*arguments, **kwargs)

    def make_trainer(*arguments: Any, **kwargs: Any) -> FinetuneTrainer:
        trainers.append((kwargs["label_smoothing"], kwargs["amp_backend"], kwargs["cuda_graphs"]))
        return FinetuneTrainer(*arguments, **kwargs)

    def train_only(model: BertFinetuneModel, ids: torch.Tensor) -> AbstractContextManager[None]:
        trained.append(ids)
        return only_tokens(model, ids)

    monkeypatch.setattr("receiptbert.finetuning.MixtureBatchSampler", make_batches)
    monkeypatch.setattr("receiptbert.finetuning.FinetuneTrainer", make_trainer)
    monkeypatch.setattr("receiptbert.finetuning.only_tokens", train_only)
    run_stage(teachers="1", label_smoothing="0.2")
    assert drawn == [(80, 2), (80 + 80, 2)]
    # The labels of the final model's pool are smoothed already, the teachers' answers never are.
    assert trainers == [(0.2, "torch", False), (0.0, "torch", False)]
    texts = [
        TokenStore.load(pipeline.TOKENIZED / f"{split}.safetensors") for split in ("train", "unsupervised")
    ]
    for ids, store in zip(trained, (texts[0], texts[0].followed_by(texts[1])), strict=True):
        assert torch.equal(ids, tokens_in(store, tokenizer))


def test_each_model_has_a_seed_of_its_own(
    run_stage: Callable[..., dict[Path, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, of_weights, of_batches = Finetuning._make_model, [], []

    def make_model(finetuning: Finetuning, seed: int) -> BertFinetuneModel:
        of_weights.append(seed)
        return make(finetuning, seed)

    def make_batches(*arguments: Any) -> MixtureBatchSampler:
        of_batches.append(arguments[-1])
        return MixtureBatchSampler(*arguments)

    monkeypatch.setattr(Finetuning, "_make_model", make_model)
    monkeypatch.setattr("receiptbert.finetuning.MixtureBatchSampler", make_batches)
    run_stage(teachers="2", epochs="1", seed="5")
    assert of_weights == of_batches == [teacher_seed(5, 1), teacher_seed(5, 2), 5]


def test_teachers_label_texts_part_by_part(
    run_stage: Callable[..., dict[Path, bytes]],
    tokenizer: WordpieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_pool, pools = distillation.distillation_pool, []

    def note(*args: Any) -> TrainingSet:
        pools.append(make_pool(*args))
        return pools[-1]

    plans: list[Plan] = []
    monkeypatch.setattr(distillation, "distillation_pool", note)
    monkeypatch.setattr("receiptbert.finetuning.announce", lambda plan, _: plans.append(plan))
    run_stage(teachers="2", epochs="1")
    monkeypatch.setattr(distillation, "TEXTS_AT_ONCE", 7)
    run_stage(teachers="2", epochs="1")
    at_once, in_parts = pools
    assert at_once.num_unlabelled > 7
    np.testing.assert_allclose(in_parts.targets, at_once.targets, atol=1e-6)
    for plan in plans:  # of the final model
        assert (plan.texts, plan.steps) == (80, 2)
        assert plan.soft_targets == at_once.targets.size
        assert plan.trained_tokens == len(tokens_in(at_once.texts, tokenizer))


def test_the_seed_decides_which_unsupervised_texts_come_first(
    run_stage: Callable[..., dict[Path, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pool, found = distillation.distillation_pool, []

    def note(train: TrainingSet, unlabelled: TokenStore, probabilities: Any) -> TrainingSet:
        found.append([unlabelled[i].tolist() for i in range(len(unlabelled))])
        return make_pool(train, unlabelled, probabilities)

    monkeypatch.setattr(distillation, "distillation_pool", note)
    for seed in ("1", "2"):
        run_stage(teachers="1", epochs="1", seed=seed)
    assert found[0] != found[1]
    assert sorted(found[0]) == sorted(found[1])
