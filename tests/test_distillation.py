"""The pool that the final model is trained on, and training on probabilities."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch.utils.data import DataLoader

from receiptbert import FinetuneDataset, WordpieceTokenizer, collate_fn, distillation
from receiptbert.distillation import (
    TeachingTexts,
    distillation_pool,
    read_teaching_texts,
    teacher_seed,
)
from receiptbert.finetuning import Finetuned
from receiptbert.labelled import Labelled, TrainingSet
from receiptbert.metrics import f1
from receiptbert.split_texts import save_texts
from receiptbert.token_store import TokenStore
from tests.conftest import Make
from tests.small_trainings import labelled


def training_set(num_texts: int, epochs: int) -> TrainingSet:
    """Text ``i`` is ``i + 1`` times the token 1, so that its length tells which it is; its class is i % 3."""
    return TrainingSet(store(1, num_texts), np.arange(num_texts) % 3, num_texts, epochs, 32, 0.3)


def store(token: int, num_texts: int) -> TokenStore:
    lengths = np.arange(1, num_texts + 1)
    ids = np.full(lengths.sum(), token, dtype=np.uint16)
    return TokenStore(ids, np.concatenate([[0], np.cumsum(lengths)]), None, "v")


def test_the_pool_holds_all_texts_each_with_its_own_target() -> None:
    probabilities = np.random.default_rng(0).random((40, 3), dtype=np.float32)
    pool = distillation_pool(training_set(10, 12), store(2, 40), probabilities)
    assert (pool.num_labelled, pool.num_unlabelled) == (10, 40)
    assert (pool.epochs, pool.batch_size, pool.label_smoothing) == (12, 32, 0.0)
    assert pool.targets.dtype == np.float32
    tokens = [pool.texts[i].tolist() for i in range(len(pool.texts))]
    assert tokens == [[1] * (i + 1) for i in range(10)] + [[2] * (i + 1) for i in range(40)]
    smoothed = np.where(np.arange(3) == np.arange(10)[:, None] % 3, 0.8, 0.1)
    np.testing.assert_allclose(pool.targets[:10], smoothed, rtol=1e-6)
    assert (pool.targets[10:] == probabilities).all()


@pytest.mark.parametrize(("epochs", "number"), [(12, 2 * 10 * 12), (60, 1000)])
def test_no_more_unlabelled_texts_are_drawn_than_there_is_time_for(
    tokenizer: WordpieceTokenizer, tmp_path: Path, epochs: int, number: int
) -> None:
    texts = {"train": ["чай"] * 10, "val": ["сыр"], "unsupervised": [f"мёд {i}" for i in range(1000)]}
    for split, of_split in texts.items():
        save_texts(tmp_path, split, of_split)
    val = Labelled(store(1, 1), np.zeros(1, np.int64))
    teaching = read_teaching_texts(tmp_path, training_set(10, epochs), val, tokenizer, seed=0)
    assert (teaching.train, teaching.val) == (texts["train"], texts["val"])
    assert len(set(teaching.unlabelled)) == len(teaching.unlabelled) == number
    ids = [teaching.unlabelled_ids[i].tolist() for i in range(number)]
    assert ids == [tokenizer(text) for text in teaching.unlabelled]


def test_all_teachers_have_the_same_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the weight is the linear teacher's; the BERTs share the rest, and their scores are averaged."""
    rng = np.random.default_rng(0)
    of_bert = dict(enumerate(rng.normal(size=(3, 5, 3)).astype(np.float32)))
    of_linear = softmax(rng.normal(size=(5, 3)), axis=1).astype(np.float32)
    numbers = iter(of_bert)

    class Teachers:
        num_classes = 3

        def train(self, *_: Any) -> Finetuned:
            number = next(numbers)
            return Finetuned(cast(Any, number), [], {"f1": 0.5 + number / 10}, {})

        def logits(self, number: int, _: TokenStore) -> Any:
            return of_bert[number]

    linear = SimpleNamespace(probabilities=lambda texts: of_linear[: len(texts)])
    given: list[Any] = []
    monkeypatch.setattr(distillation, "LinearTeacher", lambda *arguments: given.extend(arguments) or linear)
    texts = TeachingTexts(["чай"] * 2, ["сыр"] * 4, ["мёд"] * 5, store(2, 5))
    val, train = Labelled(store(1, 4), np.array([0, 0, 0, 1])), training_set(2, 1)
    runs = cast(Any, [None] * len(of_bert))
    pool, scores = distillation.distil(cast(Any, Teachers()), train, val, texts, 0, runs)
    # Val tells how sure it may be: of its own texts it is too sure.
    expected_by = (texts.train, train.targets, texts.val, val.targets, 3)
    assert all(one is other for one, other in zip(given, expected_by, strict=True))
    answered = of_linear[:4].argmax(axis=1)
    weighted, macro = (f1(val.targets, answered, average) for average in ("weighted", "macro"))
    assert scores["linear_val_weighted_f1"] == weighted != macro
    expected = sum(softmax(logits, axis=1) for logits in of_bert.values()) / 6 + of_linear / 2
    np.testing.assert_allclose(pool.targets[2:], expected, rtol=1e-5)
    assert scores["teacher_val_weighted_f1"] == pytest.approx(0.6)


def test_neighbouring_seeds_share_no_teacher() -> None:
    seeds = [teacher_seed(seed, number) for seed in range(10) for number in range(1, 5)]
    assert len(set(seeds) - set(range(20))) == len(seeds)


def test_texts_of_two_tokenizers_make_no_pool() -> None:
    other = TokenStore(np.ones(1, np.uint16), np.array([0, 1]), None, "w")
    with pytest.raises(ValueError, match="different tokenizers"):
        distillation_pool(training_set(2, 1), other, np.ones((1, 3), np.float32))


def test_certain_probabilities_train_as_class_ids_do(
    texts: list[str], tokenizer: WordpieceTokenizer, finetuner: Make
) -> None:
    some, classes = labelled(texts)
    losses = []
    for targets in (classes, np.eye(3, dtype=np.float32)[classes]):
        trainer, loaders = finetuner()
        dataset = FinetuneDataset(some, targets, tokenizer, maxlen=12, presort=True)
        loaders = {
            name: DataLoader(dataset, 40, collate_fn=lambda batch: collate_fn(batch, tokenizer.pad_token_id))
            for name in loaders
        }
        trainer.train(loaders, 2)
        losses.append([record["loss"] for record in trainer.history] + [trainer.epochs[-1]["eval_loss"]])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_soft_targets_are_learned(
    texts: list[str], tokenizer: WordpieceTokenizer, finetuner: Make, precision: str
) -> None:
    """The least loss is the entropy of the targets, and the model comes near it."""
    target = np.array([0.7, 0.2, 0.1], np.float32)
    dataset = FinetuneDataset(texts, np.tile(target, (len(texts), 1)), tokenizer, maxlen=12)
    loader = DataLoader(dataset, 40, collate_fn=lambda batch: collate_fn(batch, tokenizer.pad_token_id))
    trainer, _ = finetuner(precision=precision)
    trainer.train({"train": loader, "eval": loader}, 8)
    entropy = -(target * np.log(target)).sum()
    assert entropy - 1e-4 < trainer.epochs[-1]["eval_loss"] < entropy + 0.01


def test_items_and_batches_hold_the_same_probabilities(
    texts: list[str], tokenizer: WordpieceTokenizer
) -> None:
    targets = np.random.default_rng(0).random((len(texts), 3), dtype=np.float32)
    dataset = FinetuneDataset(texts, targets, tokenizer, maxlen=12)
    at_once = collate_fn(dataset.__getitems__([3, 1, 2]), tokenizer.pad_token_id)
    one_by_one = collate_fn([dataset[i] for i in (3, 1, 2)], tokenizer.pad_token_id)
    for a, b in zip(at_once, one_by_one, strict=True):
        assert torch.equal(a, b)
    assert at_once[1].tolist() == targets[[3, 1, 2]].tolist()
