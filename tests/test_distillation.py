"""The pool that the final model is trained on, and training on probabilities."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from receiptbert import FinetuneDataset, WordpieceTokenizer, collate_fn
from receiptbert.distillation import distillation_pool, draw_unlabelled, mixture
from receiptbert.labelled import TrainingSet
from receiptbert.token_store import TokenStore
from tests.test_training import finetune_parts, labelled


def training_set(num_texts: int, epochs: int) -> TrainingSet:
    """Text ``i`` is ``i + 1`` times the token 1, so that its length tells which it is; its class is i % 3."""
    return TrainingSet(store(1, num_texts), np.arange(num_texts) % 3, epochs, 32, 0.3)


def store(token: int, num_texts: int) -> TokenStore:
    lengths = np.arange(1, num_texts + 1)
    ids = np.full(lengths.sum(), token, dtype=np.uint16)
    return TokenStore(ids, np.concatenate([[0], np.cumsum(lengths)]), None, "v")


# Ten labelled texts make one batch, which is not full, in each of 12 passes.
MIXTURES = [(60, 3, 4, 30), (120, 6, 2, 30), (40, 2, 6, 30), (3, 1, 12, 13), (480, 12, 1, 50)]


@pytest.mark.parametrize(("num_unlabelled", "repeats", "epochs", "batch_size"), MIXTURES)
def test_the_pool_holds_all_texts_each_with_its_own_target(
    num_unlabelled: int, repeats: int, epochs: int, batch_size: int
) -> None:
    probabilities = np.random.default_rng(0).random((num_unlabelled, 3), dtype=np.float32)
    pool = distillation_pool(training_set(10, 12), store(2, num_unlabelled), probabilities)
    assert len(pool.texts) == len(pool.targets) == 10 * repeats + num_unlabelled
    assert pool.targets.dtype == np.float32
    assert (pool.epochs, pool.batch_size, pool.label_smoothing) == (epochs, batch_size, 0.0)
    seen = {1: [0] * 10, 2: [0] * num_unlabelled}
    for ids, target in zip((pool.texts[i] for i in range(len(pool.texts))), pool.targets, strict=True):
        token, number = int(ids[0]), len(ids) - 1
        assert (ids == token).all()
        seen[token][number] += 1
        if token == 2:
            assert (target == probabilities[number]).all()
        else:
            np.testing.assert_allclose(target, np.where(np.arange(3) == number % 3, 0.8, 0.1), rtol=1e-6)
    assert seen == {1: [repeats] * 10, 2: [1] * num_unlabelled}


@given(
    num_labelled=st.integers(1, 3000),
    num_unlabelled=st.integers(0, 40_000),
    passes=st.integers(1, 24),
    batch_size=st.integers(8, 256),
)
def test_a_training_on_the_pool_is_as_long_as_one_on_the_labels(
    num_labelled: int, num_unlabelled: int, passes: int, batch_size: int
) -> None:
    blank = TokenStore(np.empty(0, np.uint16), np.zeros(num_labelled + 1, int), None, "v")
    targets = np.zeros(num_labelled, int)
    found = mixture(TrainingSet(blank, targets, passes, batch_size, 0.3), num_unlabelled)
    assert found.repeats * found.epochs == passes
    steps = found.epochs * (found.repeats * num_labelled + num_unlabelled) / found.batch_size
    assert steps == pytest.approx(passes * math.ceil(num_labelled / batch_size), rel=0.51 / found.batch_size)


def test_no_more_unlabelled_texts_are_drawn_than_there_is_time_for() -> None:
    texts = [str(i) for i in range(1000)]
    drawn = draw_unlabelled(texts, training_set(10, 12), seed=0)
    assert len(drawn) == len(set(drawn)) == 2 * 10 * 12
    assert set(drawn) <= set(texts)
    assert drawn == draw_unlabelled(texts, training_set(10, 12), seed=0)
    assert drawn != draw_unlabelled(texts, training_set(10, 12), seed=1)
    assert sorted(draw_unlabelled(texts, training_set(50, 12), seed=0)) == sorted(texts)


def test_texts_of_two_vocabularies_make_no_pool() -> None:
    other = TokenStore(np.ones(1, np.uint16), np.array([0, 1]), None, "w")
    with pytest.raises(ValueError, match="different vocabularies"):
        distillation_pool(training_set(2, 1), other, np.ones((1, 3), np.float32))


def test_certain_probabilities_train_as_class_ids_do(
    texts: list[str], tokenizer: WordpieceTokenizer, finetune_model: Callable[..., Any]
) -> None:
    some, classes = labelled(texts)
    losses = []
    for targets in (classes, np.eye(3, dtype=np.float32)[classes]):
        trainer, loaders = finetune_parts(texts, tokenizer, finetune_model())
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
    texts: list[str], tokenizer: WordpieceTokenizer, finetune_model: Callable[..., Any], precision: str
) -> None:
    """The least loss is the entropy of the targets, and the model comes near it."""
    target = np.array([0.7, 0.2, 0.1], np.float32)
    dataset = FinetuneDataset(texts, np.tile(target, (len(texts), 1)), tokenizer, maxlen=12)
    loader = DataLoader(dataset, 40, collate_fn=lambda batch: collate_fn(batch, tokenizer.pad_token_id))
    trainer, _ = finetune_parts(texts, tokenizer, finetune_model(), precision=precision)
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
