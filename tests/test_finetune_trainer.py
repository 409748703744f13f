"""The loop of finetuning: what it learns, and with the weights of which epoch it ends."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from receiptbert import FinetuneDataset, FinetuneTrainer, InferenceDataset, WordpieceTokenizer, make_scorer
from receiptbert.flat_texts import padding_mask
from receiptbert.inference import inference_loader, predict_logits
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


@pytest.mark.parametrize(
    ("scores", "eval_every", "judged", "best"),
    [
        ([0.1, 0.7, 0.7, 0.3], 1, [1, 2, 3, 4], 2),  # the first of equals
        ([0.1, 0.7, 0.3], 2, [2, 4, 5], 4),  # the last epoch is always judged
    ],
)
def test_the_best_of_the_epochs_that_are_judged_is_kept(
    finetuner: Make, scores: list[float], eval_every: int, judged: list[int], best: int
) -> None:
    trainer, loaders = finetuner()
    model = trainer._model
    values, weights = iter(scores), []

    def scorer(_: FinetuneTrainer) -> tuple[str, float]:
        weights.append([parameter.clone() for parameter in model.parameters()])
        return "f1", next(values)

    trainer.train(loaders, judged[-1], scorer, eval_every)
    assert [(record["epoch"], record["f1"]) for record in trainer.epochs] == list(
        zip(judged, scores, strict=True)
    )
    assert len(trainer.history) == judged[-1] * len(loaders["train"])
    last_of_them = [record["loss"] for record in trainer.history[-len(loaders["train"]) :]]
    assert trainer.epochs[-1]["train_loss"] == pytest.approx(sum(last_of_them) / len(last_of_them))
    assert trainer.best_epoch == best
    kept = weights[judged.index(best)]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept, strict=True))


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


def test_answers_come_in_the_order_of_the_texts_whatever_the_order_of_the_batches(
    texts: list[str], tokenizer: WordpieceTokenizer, finetuner: Make
) -> None:
    trainer, loaders = finetuner()
    trainer.train(loaders, 3)
    lines, _ = labelled(texts)
    one_by_one = [
        int(trainer.predict(DataLoader(InferenceDataset([line], 12, tokenizer)))[0]) for line in lines
    ]
    assert len(set(one_by_one)) > 1
    dataset = InferenceDataset(lines, 12, tokenizer)
    own = LengthGroupedBatchSampler(dataset.shown_lengths, 2)
    for loader in (
        inference_loader(lines, tokenizer, 12),
        DataLoader(dataset, shuffle=True),
        DataLoader(dataset, batch_sampler=own, collate_fn=torch.stack),
    ):
        assert trainer.predict(loader).tolist() == one_by_one


def test_a_loader_that_leaves_out_texts_is_refused(
    texts: list[str], tokenizer: WordpieceTokenizer, finetuner: Make
) -> None:
    trainer, _ = finetuner()
    dataset = InferenceDataset(texts[:5], 12, tokenizer)
    with pytest.raises(ValueError, match="has 4 of 5 texts"):
        trainer.predict(DataLoader(dataset, batch_size=2, drop_last=True, collate_fn=torch.stack))
    with pytest.raises(ValueError, match="has 1 of 5 texts"):
        trainer.predict(DataLoader(dataset, batch_sampler=[[3]] * 5))
