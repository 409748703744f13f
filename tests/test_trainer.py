"""The loop of pretraining: what it computes in each precision, when it ends, what it learns and scores."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from receiptbert import Collator, PretrainDataset, WordpieceTokenizer
from receiptbert.modeling import dropout_everywhere
from tests.conftest import Make


def test_a_budget_of_steps_ends_the_training(pretrainer: Make, pretrain_loader: Make) -> None:
    loader = pretrain_loader()
    budget = len(loader)  # the second step of the second epoch, which has three
    trainer = pretrainer(num_accum_steps=2)
    trainer.train(loader, 9, max_steps=budget)
    assert len(trainer.history) == budget
    for steps in (budget, 1):  # as many were made, or more
        trainer.train(loader, 1, max_steps=steps)
        assert len(trainer.history) == budget


def test_the_losses_told_are_those_of_the_last_steps(
    pretrainer: Make,
    pretrain_loader: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("receiptbert.trainer.RECENT_STEPS", 2)
    trainer = pretrainer()
    trainer.train(pretrain_loader(), 1)
    assert len(trainer.history) > 2
    mlm, sop = (sum(step[name] for step in trainer.history[-2:]) / 2 for name in ("MLM", "SOP"))
    assert f"epoch 1: MLM {mlm:.4f}, SOP {sop:.4f} over the last 2 steps" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_checkpointing_computes_layers_twice_and_changes_no_bit(
    pretrain_model: Make, pretrainer: Make, pretrain_loader: Make, precision: str
) -> None:
    results = []
    for active in (False, True):
        model = pretrain_model(**dropout_everywhere(0.1))
        model.backbone.activation_checkpointing = active
        computed: list[str] = []
        model.backbone._layers[0].register_forward_pre_hook(lambda *_, log=computed: log.append("layer"))
        trainer = pretrainer(model, max_grad_norm=1.0, precision=precision)
        loader = pretrain_loader()
        torch.manual_seed(1)
        trainer.train(loader, 1)
        assert len(computed) == len(loader) * (2 if active else 1)
        scores = trainer.evaluate(loader)  # which keeps no activations anyway
        assert len(computed) == len(loader) * (3 if active else 2)
        results.append((trainer.history, scores, [p.tolist() for p in model.parameters()]))
    assert results[0] == results[1]


def test_mixed_precision_trains_like_fp32(pretrainer: Make, pretrain_loader: Make) -> None:
    losses, norms = {}, {}
    for precision in ("fp32", "bf16", "fp16"):
        trainer = pretrainer(precision=precision)
        torch.manual_seed(1)
        trainer.train(pretrain_loader(), 2)
        losses[precision] = [record["MLM"] for record in trainer.history]
        norms[precision] = trainer.history[0]["grad_norm"]  # not that of the scaled gradients
        assert all(parameter.dtype == torch.float32 for parameter in trainer._model.parameters())
    for precision in ("bf16", "fp16"):
        assert losses[precision] != losses["fp32"]
        np.testing.assert_allclose(losses[precision], losses["fp32"], rtol=0.02)
        assert norms[precision] == pytest.approx(norms["fp32"], rel=0.1)


def test_in_bf16_few_numbers_of_targets_are_computed(
    pretrainer: Make, pretrain_loader: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new one would be compiled; the rows that are too many change no loss."""
    rows: dict[tuple[str, int], list[int]] = {}
    losses = []
    for precision, multiple in (("fp32", 16), ("bf16", 16), ("bf16", 1)):
        monkeypatch.setattr("receiptbert.trainer.ROWS_MULTIPLE", multiple)
        trainer = pretrainer(precision=precision)
        given = rows[precision, multiple] = []
        count = partial(lambda given, _, inputs: given.append(len(inputs[0])), given)
        trainer._model._mlm_head._dense.register_forward_pre_hook(count)
        torch.manual_seed(1)
        trainer.train(pretrain_loader(), 1)
        losses.append([record["MLM"] for record in trainer.history])
    exact = rows["fp32", 16]
    assert rows["bf16", 1] == exact
    assert rows["bf16", 16] == [-(-number // 16) * 16 for number in exact] != exact
    assert losses[1] != losses[0]
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-3)


def test_pretraining_learns(tokenizer: WordpieceTokenizer, pretrainer: Make, pretrain_loader: Make) -> None:
    loader = pretrain_loader()
    trainer = pretrainer(steps=60 * len(loader))
    torch.manual_seed(0)
    before = trainer.evaluate(loader)
    trainer.train(loader, 60)
    after = trainer.evaluate(loader)
    assert before["mlm_loss"] == pytest.approx(math.log(tokenizer.vocab_size), abs=0.5)
    assert after["mlm_loss"] < before["mlm_loss"] - 0.5


def test_tokens_seen_are_counted_without_padding(
    texts: list[str], tokenizer: WordpieceTokenizer, pretrainer: Make, pretrain_loader: Make
) -> None:
    trainer = pretrainer()
    trainer.train(pretrain_loader(), 2)
    lengths = [len(tokenizer(text)) for text in texts]
    assert trainer.tokens_seen == 2 * sum(min(length, 12) + 2 for length in lengths if length >= 3)


@pytest.mark.parametrize("permute_prob", [0.0, 1.0])
def test_accuracy_of_sentence_order(
    texts: list[str], tokenizer: WordpieceTokenizer, pretrainer: Make, permute_prob: float
) -> None:
    trainer = pretrainer()
    with torch.no_grad():  # "swapped" is all that it says
        trainer._model._classifier_head._output.weight.zero_()
        trainer._model._classifier_head._output.bias.fill_(5)
    dataset = PretrainDataset(texts, tokenizer, minlen=3, maxlen=12, permute_prob=permute_prob)
    loader = DataLoader(dataset, 40, collate_fn=Collator(tokenizer))
    assert trainer.evaluate(loader)["sop_accuracy"] == permute_prob


def test_scores_of_pretraining_are_means_over_targets_and_texts_without_dropout(
    texts: list[str], tokenizer: WordpieceTokenizer, pretrain_model: Make, pretrainer: Make
) -> None:
    torch.manual_seed(0)
    dataset = PretrainDataset(texts, tokenizer, minlen=3, maxlen=12)
    collate = Collator(tokenizer, mask_prob=0.5)
    few, many = (collate(dataset.__getitems__(range(count))) for count in (3, 50))
    trainer = pretrainer(pretrain_model(hidden_dropout_prob=0.5))
    both, of_few, of_many = (trainer.evaluate(batches) for batches in ([few, many], [few], [many]))
    assert both == trainer.evaluate([few, many])
    without_targets = [
        (ids, kinds, torch.full_like(labels, -100), swapped) for ids, kinds, labels, swapped in [few]
    ]
    assert trainer.evaluate(without_targets).keys() == {"sop_accuracy"}
    weights = {
        "mlm_loss": [int((labels != -100).sum()) for _, _, labels, _ in (few, many)],
        "sop_accuracy": [3, 50],
    }
    for name, by in weights.items():
        assert both[name] == pytest.approx(np.average([of_few[name], of_many[name]], weights=by))
        assert of_few[name] != of_many[name]


def test_scoring_computes_what_training_does(
    tokenizer: WordpieceTokenizer, pretrainer: Make, pretrain_loader: Make
) -> None:
    """With padding hidden, and the segments told apart; and then training goes on."""
    batch = next(batch for batch in pretrain_loader() if (batch[0] == tokenizer.pad_token_id).any())
    trainer = pretrainer()
    scores = trainer.evaluate([batch])
    trainer.train([batch], 1)  # the record is of the weights before the step
    assert scores["mlm_loss"] == pytest.approx(trainer.history[0]["MLM"], rel=1e-5)
    assert trainer._model.training


def test_scoring_keeps_nothing_for_gradients(
    pretrainer: Make, pretrain_loader: Make, finetuner: Make
) -> None:
    kept: list[bool] = []
    trainer, (classifying, loaders) = pretrainer(), finetuner()
    for model in (trainer._model, classifying._model):
        model.backbone.register_forward_hook(lambda _, __, output: kept.append(output.requires_grad))
    trainer.evaluate(pretrain_loader())
    classifying._eval_step(loaders["eval"])
    assert kept
    assert not any(kept)
