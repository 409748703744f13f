"""The loop of finetuning: what it learns, and with the weights of which epoch it ends."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from receiptbert import FinetuneDataset, FinetuneTrainer, InferenceDataset, WordpieceTokenizer, make_scorer
from receiptbert.flat_texts import padding_mask
from receiptbert.inference import inference_loader, predict_logits
from receiptbert.metrics import f1
from receiptbert.sampling import LengthGroupedBatchSampler
from tests.conftest import Make
from tests.small_trainings import labelled


def test_without_a_score_the_last_weights_stay(finetuner: Make) -> None:
    trainer, loaders = finetuner()
    trainer.train(loaders, 0)
    assert trainer.epochs == []
    last = []

    def no_score(trainer: FinetuneTrainer) -> tuple[str, float]:
        last.append({name: value.clone() for name, value in trainer._model.state_dict().items()})
        return "f1", math.nan

    trainer.train(loaders, 2, no_score)
    assert [record["epoch"] for record in trainer.epochs] == [1, 2]
    assert trainer.best_epoch == 0
    assert all(torch.equal(value, last[1][name]) for name, value in trainer._model.state_dict().items())


def test_finetuning_learns(texts: list[str], tokenizer: WordpieceTokenizer, finetuner: Make) -> None:
    trainer, loaders = finetuner()
    scorer = make_scorer(*labelled(texts), tokenizer, 12)
    name, before = scorer(trainer)
    trainer.train(loaders, 8, scorer)
    assert name == "f1"
    assert scorer(trainer)[1] > max(before, 0.9)


def test_the_score_is_the_weighted_f1(
    texts: list[str], tokenizer: WordpieceTokenizer, finetuner: Make
) -> None:
    trainer, _ = finetuner()
    lines, targets = labelled(texts)
    _, score = make_scorer(lines, targets, tokenizer, 12)(trainer)
    predicted = trainer.predict(inference_loader(lines, tokenizer, 12))
    assert score == f1(targets, predicted, "weighted") != f1(targets, predicted, "macro")


def test_the_best_epoch_is_kept(finetuner: Make) -> None:
    trainer, loaders = finetuner()
    model = trainer._model
    values = iter([0.1, 0.7, 0.7, 0.3])
    weights = []

    def scorer(_: FinetuneTrainer) -> tuple[str, float]:
        weights.append([parameter.clone() for parameter in model.parameters()])
        return "f1", next(values)

    trainer.train(loaders, 4, scorer)
    assert trainer.best_epoch == 2  # the first of equals
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights[1], strict=True))
    assert [record["f1"] for record in trainer.epochs] == [0.1, 0.7, 0.7, 0.3]


def test_of_many_epochs_some_are_judged_and_the_last(finetuner: Make) -> None:
    trainer, loaders = finetuner()
    model = trainer._model
    values, weights = iter([0.1, 0.7, 0.3]), []

    def scorer(_: FinetuneTrainer) -> tuple[str, float]:
        weights.append([parameter.clone() for parameter in model.parameters()])
        return "f1", next(values)

    trainer.train(loaders, 5, scorer, eval_every=2)
    assert [record["epoch"] for record in trainer.epochs] == [2, 4, 5]
    assert len(trainer.history) == 5 * len(loaders["train"])
    last_of_them = [record["loss"] for record in trainer.history[-len(loaders["train"]) :]]
    assert trainer.epochs[-1]["train_loss"] == pytest.approx(sum(last_of_them) / len(last_of_them))
    assert trainer.best_epoch == 4
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights[1], strict=True))


def test_without_a_scorer_the_last_epoch_stays(finetuner: Make) -> None:
    trainer, loaders = finetuner()
    trainer.train(loaders, 2)
    assert trainer.best_epoch == 2
    assert list(trainer.epochs[-1]) == ["epoch", "train_loss", "eval_loss"]


def test_predictions_are_made_without_dropout(
    texts: list[str], tokenizer: WordpieceTokenizer, finetune_model: Make
) -> None:
    model, loader = finetune_model(hidden_dropout_prob=0.5), inference_loader(texts, tokenizer, 12)
    logits = [
        predict_logits(model.train(training), loader, tokenizer.pad_token_id, torch.device("cpu"))
        for training in (True, False)
    ]
    assert (logits[0] == logits[1]).all()


def test_labels_are_smoothed_in_training_alone(
    texts: list[str], tokenizer: WordpieceTokenizer, finetune_model: Make, finetuner: Make
) -> None:
    model = finetune_model().eval()
    trainer, loaders = finetuner(model, label_smoothing=0.3)
    _, same_loaders = finetuner(model)
    input_ids, targets = next(iter(same_loaders["train"]))
    log_probs = model(input_ids, padding_mask(input_ids, tokenizer.pad_token_id)).log_softmax(-1)
    of_target, of_all = -log_probs[range(len(targets)), targets].mean(), -log_probs.mean()
    trainer.train(loaders, 1)
    assert trainer.history[0]["loss"] == pytest.approx((0.7 * of_target + 0.3 * of_all).item(), abs=1e-6)

    lines, classes = labelled(texts)
    dataset = FinetuneDataset(lines, classes, tokenizer, maxlen=12)
    model.eval()
    losses = [cross_entropy(model(ids[None]), torch.tensor([target])).item() for ids, target in dataset]
    assert trainer.epochs[0]["eval_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_prediction_keeps_the_order_of_the_texts(
    texts: list[str], tokenizer: WordpieceTokenizer, finetuner: Make
) -> None:
    trainer, loaders = finetuner()
    trainer.train(loaders, 8)
    texts, _ = labelled(texts)
    together = trainer.predict(inference_loader(texts, tokenizer, 12))
    one_by_one = [
        int(trainer.predict(DataLoader(InferenceDataset([text], 12, tokenizer)))[0]) for text in texts
    ]
    assert together.tolist() == one_by_one
    assert len(set(one_by_one)) > 1


def test_answers_come_in_the_order_of_the_texts_whatever_the_order_of_the_batches(
    texts: list[str], tokenizer: WordpieceTokenizer, finetuner: Make
) -> None:
    trainer, loaders = finetuner()
    trainer.train(loaders, 3)
    dataset = InferenceDataset(labelled(texts)[0], 12, tokenizer)
    expected = trainer.predict(DataLoader(dataset)).tolist()
    assert len(set(expected)) > 1
    own = LengthGroupedBatchSampler(dataset.shown_lengths, 2)
    assert trainer.predict(DataLoader(dataset, shuffle=True)).tolist() == expected
    by_length = DataLoader(dataset, batch_sampler=own, collate_fn=torch.stack)
    assert trainer.predict(by_length).tolist() == expected


def test_a_loader_that_leaves_out_texts_is_refused(
    texts: list[str], tokenizer: WordpieceTokenizer, finetuner: Make
) -> None:
    trainer, _ = finetuner()
    dataset = InferenceDataset(texts[:5], 12, tokenizer)
    with pytest.raises(ValueError, match="has 4 of 5 texts"):
        trainer.predict(DataLoader(dataset, batch_size=2, drop_last=True, collate_fn=torch.stack))
    with pytest.raises(ValueError, match="has 1 of 5 texts"):
        trainer.predict(DataLoader(dataset, batch_sampler=[[3]] * 5))
