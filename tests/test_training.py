"""The two loops: what a step is, what is logged, and golden losses that a refactor must keep."""

import json
import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from receiptbert import (
    BertFinetuneModel,
    BertModel,
    Collator,
    FinetuneDataset,
    FinetuneTrainer,
    InferenceDataset,
    PretrainDataset,
    Scheduler,
    Trainer,
    WordpieceTokenizer,
    collate_fn,
    get_optimizer,
    make_scorer,
)
from receiptbert.flat_texts import padding_mask
from receiptbert.inference import inference_loader
from receiptbert.optimization import num_optimizer_steps
from receiptbert.sampling import LengthGroupedBatchSampler
from tests.conftest import Cut

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
Make = Callable[..., Any]


def pretrain_trainer(
    model: BertModel, tokenizer: WordpieceTokenizer, steps: int = 20, **kwargs: Any
) -> Trainer:
    optimizer = get_optimizer(model)
    schedule = Scheduler(optimizer, 0.0, 5e-3, 0.0, 2, steps)
    return Trainer(model, optimizer, schedule, tokenizer.pad_token_id, "cpu", **kwargs)


def pretrain_loader(texts: list[str], tokenizer: WordpieceTokenizer) -> DataLoader[Any]:
    dataset = PretrainDataset(texts, tokenizer, minlen=3, maxlen=12)
    sampler = LengthGroupedBatchSampler(dataset.lengths, 40)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=Collator(tokenizer))


def labelled(texts: list[str]) -> tuple[list[str], list[int]]:
    """Texts with a class that one word of each gives away."""
    targets = [len(text) % 3 for text in texts]
    return [f"{'абв'[target]} {text}" for text, target in zip(texts, targets, strict=True)], targets


def finetune_parts(
    texts: list[str], tokenizer: WordpieceTokenizer, model: BertFinetuneModel, **kwargs: Any
) -> tuple[FinetuneTrainer, dict[str, Any]]:
    lines, targets = labelled(texts)
    dataset = FinetuneDataset(lines, targets, tokenizer, maxlen=12)
    collate = partial(collate_fn, pad_idx=tokenizer.pad_token_id)
    sampler = LengthGroupedBatchSampler(dataset.lengths, 40)
    loaders = {
        "train": DataLoader(dataset, batch_sampler=sampler, collate_fn=collate),
        "eval": DataLoader(dataset, batch_size=33, collate_fn=collate),
    }
    optimizer = get_optimizer(model)
    schedule = Scheduler(optimizer, 0.0, 5e-3, 0.0, 2, 40)
    return FinetuneTrainer(model, optimizer, schedule, tokenizer.pad_token_id, "cpu", **kwargs), loaders


def golden_pretraining(
    texts: list[str], tokenizer: WordpieceTokenizer, make: Make, dropout: float
) -> list[list[float]]:
    model = make(
        input_dropout_prob=dropout, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    trainer = pretrain_trainer(model, tokenizer, max_grad_norm=1.0)
    loader = pretrain_loader(texts, tokenizer)
    torch.manual_seed(1)
    while len(trainer.history) < 20:
        trainer.train(loader, 1)
    return [[record["MLM"], record["SOP"]] for record in trainer.history[:20]]


def golden_finetuning(
    texts: list[str], tokenizer: WordpieceTokenizer, make: Make, dropout: float
) -> list[float]:
    trainer, loaders = finetune_parts(texts, tokenizer, make(hidden_dropout_prob=dropout), max_grad_norm=1.0)
    torch.manual_seed(1)
    trainer.train(loaders, 4)
    return [record["loss"] for record in trainer.history[:20]]


def test_golden_losses(
    request: pytest.FixtureRequest,
    texts: list[str],
    tokenizer: WordpieceTokenizer,
    pretrain_model: Make,
    finetune_model: Make,
) -> None:
    """A change of these numbers is a change of the training: explain it in CHANGELOG.md, and only then
    write them anew with ``pytest --update-golden``. Those without dropout must survive a mere change of the
    order in which random numbers are drawn."""
    losses = {
        "pretrain": golden_pretraining(texts, tokenizer, pretrain_model, 0.0),
        "pretrain with dropout": golden_pretraining(texts, tokenizer, pretrain_model, 0.1),
        "finetune": golden_finetuning(texts, tokenizer, finetune_model, 0.0),
        "finetune with dropout": golden_finetuning(texts, tokenizer, finetune_model, 0.1),
    }
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert losses.keys() == golden.keys()
    for name, expected in golden.items():
        # Other processors round otherwise; twenty steps do not let that grow beyond this.
        np.testing.assert_allclose(losses[name], expected, rtol=2e-3, err_msg=name)


def test_a_budget_of_steps_ends_the_training(
    texts: list[str], tokenizer: WordpieceTokenizer, pretrain_model: Make
) -> None:
    loader = pretrain_loader(texts, tokenizer)
    budget = len(loader) + 1  # into the second epoch
    trainer = pretrain_trainer(pretrain_model(), tokenizer, num_accum_steps=2)
    trainer.train(loader, 9, max_steps=budget)
    assert len(trainer.history) == budget
    for steps in (budget, 1):  # as many were made, or more
        trainer.train(loader, 1, max_steps=steps)
        assert len(trainer.history) == budget


def test_a_training_that_was_cut_off_leaves_no_gradients_to_the_next(
    texts: list[str], tokenizer: WordpieceTokenizer, pretrain_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pretrain_model()
    trainer = pretrain_trainer(model, tokenizer, num_accum_steps=2)
    backward, losses = trainer._backward, []

    def cut_off_the_second(loss: torch.Tensor) -> None:
        losses.append(loss)
        if len(losses) == 2:
            raise Cut
        backward(loss)

    monkeypatch.setattr(trainer, "_backward", cut_off_the_second)
    with pytest.raises(Cut):
        trainer.train(pretrain_loader(texts, tokenizer), 1)
    assert any(parameter.grad is not None for parameter in model.parameters())
    trainer.train([], 0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_a_score_the_last_weights_stay(
    texts: list[str], tokenizer: WordpieceTokenizer, finetune_model: Make
) -> None:
    trainer, loaders = finetune_parts(texts, tokenizer, finetune_model())
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


def test_progress_is_that_of_the_whole_training(
    texts: list[str],
    tokenizer: WordpieceTokenizer,
    pretrain_model: Make,
    finetune_model: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[tuple[str, int, int]] = []

    def track(batches: Any, what: str, total: int, before: int) -> Any:
        shown.append((what, before, total))
        return batches

    monkeypatch.setattr("receiptbert.resumption.track", track)
    loader = pretrain_loader(texts, tokenizer)
    size = len(loader)
    pretrain_trainer(pretrain_model(), tokenizer).train(loader, 2)
    pretrain_trainer(pretrain_model(), tokenizer).train(loader, 9, max_steps=size + 1)
    trainer, loaders = finetune_parts(texts, tokenizer, finetune_model())
    trainer.train(loaders, 2)
    per_epoch = len(loaders["train"])
    assert shown == [
        ("epoch 1 of 2", 0, 2 * size),
        ("epoch 2 of 2", size, 2 * size),
        ("epoch 1 of 9", 0, size + 1),
        ("epoch 2 of 9", size, size + 1),
        ("epoch 1 of 2", 0, 2 * per_epoch),
        ("epoch 2 of 2", per_epoch, 2 * per_epoch),
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_checkpointing_computes_layers_twice_and_changes_no_bit(
    texts: list[str], tokenizer: WordpieceTokenizer, pretrain_model: Make, precision: str
) -> None:
    results = []
    for active in (False, True):
        model = pretrain_model(
            input_dropout_prob=0.1, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
        )
        model.checkpoint_activations(active)
        computed: list[str] = []
        model._backbone._layers[0].register_forward_pre_hook(lambda *_, log=computed: log.append("layer"))
        trainer = pretrain_trainer(model, tokenizer, max_grad_norm=1.0, precision=precision)
        loader = pretrain_loader(texts, tokenizer)
        torch.manual_seed(1)
        trainer.train(loader, 1)
        assert len(computed) == len(loader) * (2 if active else 1)
        scores = trainer.evaluate(loader)  # which keeps no activations anyway
        assert len(computed) == len(loader) * (3 if active else 2)
        results.append((trainer.history, scores, [p.tolist() for p in model.parameters()]))
    assert results[0] == results[1]


def test_mixed_precision_trains_like_fp32(
    texts: list[str], tokenizer: WordpieceTokenizer, pretrain_model: Make
) -> None:
    losses = {}
    for precision in ("fp32", "bf16", "fp16"):
        trainer = pretrain_trainer(pretrain_model(), tokenizer, precision=precision)
        torch.manual_seed(1)
        trainer.train(pretrain_loader(texts, tokenizer), 2)
        losses[precision] = [record["MLM"] for record in trainer.history]
        assert all(parameter.dtype == torch.float32 for parameter in trainer._model.parameters())
    for precision in ("bf16", "fp16"):
        assert losses[precision] != losses["fp32"]
        np.testing.assert_allclose(losses[precision], losses["fp32"], rtol=0.02)


def test_in_bf16_few_numbers_of_targets_are_computed(
    texts: list[str],
    tokenizer: WordpieceTokenizer,
    pretrain_model: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each new one would be compiled; the rows that are too many change no loss."""
    rows: dict[tuple[str, int], list[int]] = {}
    losses = []
    for precision, multiple in (("fp32", 16), ("bf16", 16), ("bf16", 1)):
        monkeypatch.setattr("receiptbert.trainer.ROWS_MULTIPLE", multiple)
        model = pretrain_model()
        given = rows[precision, multiple] = []
        count = partial(lambda given, _, inputs: given.append(len(inputs[0])), given)
        model._mlm_head._dense.register_forward_pre_hook(count)
        trainer = pretrain_trainer(model, tokenizer, precision=precision)
        torch.manual_seed(1)
        trainer.train(pretrain_loader(texts, tokenizer), 1)
        losses.append([record["MLM"] for record in trainer.history])
    exact = rows["fp32", 16]
    assert rows["bf16", 1] == exact
    assert rows["bf16", 16] == [-(-number // 16) * 16 for number in exact] != exact
    assert losses[1] != losses[0]
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-3)


def test_pretraining_learns(texts: list[str], tokenizer: WordpieceTokenizer, pretrain_model: Make) -> None:
    model = pretrain_model()
    loader = pretrain_loader(texts, tokenizer)
    trainer = pretrain_trainer(model, tokenizer, steps=60 * len(loader))
    torch.manual_seed(0)
    before = trainer.evaluate(loader)
    trainer.train(loader, 60)
    after = trainer.evaluate(loader)
    assert before["mlm_loss"] == pytest.approx(math.log(tokenizer.vocab_size), abs=0.5)
    assert after["mlm_loss"] < before["mlm_loss"] - 0.5


def test_accumulated_batches_are_one_step(
    texts: list[str], tokenizer: WordpieceTokenizer, pretrain_model: Make
) -> None:
    """Twice the same batch accumulated is that batch once; 5 batches at 2 a step are 3 steps."""
    torch.manual_seed(3)
    batch = next(iter(pretrain_loader(texts, tokenizer)))
    once, twice = pretrain_model(), pretrain_model()
    pretrain_trainer(once, tokenizer).train([batch], 3)
    trainer = pretrain_trainer(twice, tokenizer, num_accum_steps=2)
    trainer.train([batch, batch], 3)
    for a, b in zip(once.parameters(), twice.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    trainer.train([batch] * 5, 1)
    assert len(trainer.history) == 3 + 3


def test_each_accumulated_batch_has_random_numbers_of_its_own(
    texts: list[str], tokenizer: WordpieceTokenizer, pretrain_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = []

    def note(_: torch.device, *position: int) -> AbstractContextManager[None]:
        positions.append(position)
        return nullcontext()

    monkeypatch.setattr("receiptbert.descent.own_random_numbers", note)
    batch = next(iter(pretrain_loader(texts, tokenizer)))
    pretrain_trainer(pretrain_model(), tokenizer, num_accum_steps=2).train([batch] * 5, 2)
    assert len(set(positions)) == 10


@pytest.mark.parametrize(
    ("batches", "epochs", "accumulated", "steps"), [(5, 2, 1, 10), (5, 2, 2, 6), (4, 3, 4, 3)]
)
def test_schedule_is_as_long_as_the_training(
    texts: list[str],
    tokenizer: WordpieceTokenizer,
    pretrain_model: Make,
    batches: int,
    epochs: int,
    accumulated: int,
    steps: int,
) -> None:
    assert num_optimizer_steps(batches, epochs, accumulated) == steps
    batch = next(iter(pretrain_loader(texts, tokenizer)))
    trainer = pretrain_trainer(pretrain_model(), tokenizer, steps=steps, num_accum_steps=accumulated)
    trainer.train([batch] * batches, epochs)
    rates = [record["lr"] for record in trainer.history]
    assert len(rates) == steps
    assert rates[-1] > 0
    assert trainer._scheduler.get_last_lr()[0] == 0.0


def test_gradients_are_clipped_and_their_norm_logged(
    texts: list[str], tokenizer: WordpieceTokenizer, pretrain_model: Make
) -> None:
    model = pretrain_model()
    trainer = pretrain_trainer(model, tokenizer, max_grad_norm=1e-3)
    norms = []
    step = trainer._optimizer.step
    trainer._optimizer.step = lambda: (  # type: ignore[method-assign]
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()),
        step(),
    )
    trainer.train(pretrain_loader(texts, tokenizer), 1)
    assert norms == pytest.approx([1e-3] * len(trainer.history), rel=1e-2)
    assert all(record["grad_norm"] > 1e-3 for record in trainer.history)


def test_tokens_seen_are_counted_without_padding(
    texts: list[str], tokenizer: WordpieceTokenizer, pretrain_model: Make
) -> None:
    trainer = pretrain_trainer(pretrain_model(), tokenizer)
    trainer.train(pretrain_loader(texts, tokenizer), 2)
    lengths = [len(tokenizer(text)) for text in texts]
    assert trainer.tokens_seen == 2 * sum(min(length, 12) + 2 for length in lengths if length >= 3)


def scalars(folder: Path) -> dict[str, list[int]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_every_step(
    texts: list[str],
    tokenizer: WordpieceTokenizer,
    pretrain_model: Make,
    finetune_model: Make,
    tmp_path: Path,
) -> None:
    threads = set(threading.enumerate())
    trainer = pretrain_trainer(pretrain_model(), tokenizer, logdir=str(tmp_path / "pretrain"))
    trainer.train(pretrain_loader(texts, tokenizer), 1)
    steps = [record["step"] for record in trainer.history]
    assert steps == list(range(1, len(steps) + 1))
    assert scalars(tmp_path / "pretrain") == dict.fromkeys(("MLM", "SOP", "tokens", "grad_norm", "lr"), steps)

    finetuner, loaders = finetune_parts(texts, tokenizer, finetune_model(), logdir=str(tmp_path / "finetune"))
    finetuner.train(loaders, 2, make_scorer(*labelled(texts), tokenizer, 12))
    steps = [record["step"] for record in finetuner.history]
    epoch_ends = [steps[len(steps) // 2 - 1], steps[-1]]
    assert scalars(tmp_path / "finetune") == {
        **dict.fromkeys(("loss", "grad_norm", "lr"), steps),
        **dict.fromkeys(("train_loss", "eval_loss", "f1"), epoch_ends),
    }
    assert set(threading.enumerate()) <= threads  # the logs are closed


@pytest.mark.parametrize("left", [0, 1])
def test_the_history_is_whole_however_late_the_device_sends_it(
    texts: list[str],
    tokenizer: WordpieceTokenizer,
    pretrain_model: Make,
    monkeypatch: pytest.MonkeyPatch,
    left: int,
) -> None:
    monkeypatch.setattr("receiptbert.history.RECENT_STEPS", 3)
    trainer = pretrain_trainer(pretrain_model(), tokenizer)
    trainer._history._left_on_way = left
    behind = []
    step = trainer._descend

    def descend(losses: dict[str, torch.Tensor]) -> None:
        step(losses)
        behind.append(trainer._step - len(trainer.history))

    monkeypatch.setattr(trainer, "_descend", descend)
    trainer.train(pretrain_loader(texts, tokenizer), 2)
    assert [record["step"] for record in trainer.history] == list(range(1, trainer._step + 1))
    assert max(behind) == 3 * left + 2
    usual = pretrain_trainer(pretrain_model(), tokenizer)
    usual.train(pretrain_loader(texts, tokenizer), 2)
    assert [sorted(record) for record in trainer.history] == [sorted(record) for record in usual.history]


def test_finetuning_learns(texts: list[str], tokenizer: WordpieceTokenizer, finetune_model: Make) -> None:
    trainer, loaders = finetune_parts(texts, tokenizer, finetune_model())
    scorer = make_scorer(*labelled(texts), tokenizer, 12)
    name, before = scorer(trainer)
    trainer.train(loaders, 8, scorer)
    assert name == "f1"
    assert scorer(trainer)[1] > max(before, 0.9)


def test_the_best_epoch_is_kept(
    texts: list[str], tokenizer: WordpieceTokenizer, finetune_model: Make
) -> None:
    model = finetune_model()
    trainer, loaders = finetune_parts(texts, tokenizer, model)
    values = iter([0.1, 0.7, 0.7, 0.3])
    weights = []

    def scorer(_: FinetuneTrainer) -> tuple[str, float]:
        weights.append([parameter.clone() for parameter in model.parameters()])
        return "f1", next(values)

    trainer.train(loaders, 4, scorer)
    assert trainer.best_epoch == 2  # the first of equals
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights[1], strict=True))
    assert [record["f1"] for record in trainer.epochs] == [0.1, 0.7, 0.7, 0.3]


def test_of_many_epochs_some_are_judged_and_the_last(
    texts: list[str], tokenizer: WordpieceTokenizer, finetune_model: Make
) -> None:
    model = finetune_model()
    trainer, loaders = finetune_parts(texts, tokenizer, model)
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


def test_without_a_scorer_the_last_epoch_stays(
    texts: list[str], tokenizer: WordpieceTokenizer, finetune_model: Make
) -> None:
    trainer, loaders = finetune_parts(texts, tokenizer, finetune_model())
    trainer.train(loaders, 2)
    assert trainer.best_epoch == 2
    assert list(trainer.epochs[-1]) == ["epoch", "train_loss", "eval_loss"]


def test_labels_are_smoothed_in_training_alone(
    texts: list[str], tokenizer: WordpieceTokenizer, finetune_model: Make
) -> None:
    model = finetune_model().eval()
    trainer, loaders = finetune_parts(texts, tokenizer, model, label_smoothing=0.3)
    _, same_loaders = finetune_parts(texts, tokenizer, model)
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
    texts: list[str], tokenizer: WordpieceTokenizer, finetune_model: Make
) -> None:
    trainer, loaders = finetune_parts(texts, tokenizer, finetune_model())
    trainer.train(loaders, 8)
    texts, _ = labelled(texts)
    together = trainer.predict(inference_loader(texts, tokenizer, 12))
    one_by_one = [
        int(trainer.predict(DataLoader(InferenceDataset([text], 12, tokenizer)))[0]) for text in texts
    ]
    assert together.tolist() == one_by_one
    assert len(set(one_by_one)) > 1


def test_padding_mask() -> None:
    assert padding_mask(torch.tensor([[5, 6], [7, 8]]), pad_token_id=0) is None
    mask = padding_mask(torch.tensor([[5, 6], [7, 0]]), pad_token_id=0)
    assert mask is not None
    assert mask.tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize("permute_prob", [0.0, 1.0])
def test_accuracy_of_sentence_order(
    texts: list[str], tokenizer: WordpieceTokenizer, pretrain_model: Make, permute_prob: float
) -> None:
    model = pretrain_model()
    with torch.no_grad():  # "swapped" is all that it says
        model._classifier_head._output.weight.zero_()
        model._classifier_head._output.bias.fill_(5)
    dataset = PretrainDataset(texts, tokenizer, minlen=3, maxlen=12, permute_prob=permute_prob)
    loader = DataLoader(dataset, 40, collate_fn=Collator(tokenizer))
    assert pretrain_trainer(model, tokenizer).evaluate(loader)["sop_accuracy"] == permute_prob


def test_scores_of_pretraining_are_means_over_targets_and_texts_without_dropout(
    texts: list[str], tokenizer: WordpieceTokenizer, pretrain_model: Make
) -> None:
    torch.manual_seed(0)
    dataset = PretrainDataset(texts, tokenizer, minlen=3, maxlen=12)
    collate = Collator(tokenizer, mask_prob=0.5)
    few, many = (collate(dataset.__getitems__(range(count))) for count in (3, 50))
    trainer = pretrain_trainer(pretrain_model(hidden_dropout_prob=0.5), tokenizer)
    both, of_few, of_many = (trainer.evaluate(batches) for batches in ([few, many], [few], [many]))
    assert both == trainer.evaluate([few, many])
    weights = {
        "mlm_loss": [int((labels != -100).sum()) for _, _, labels, _ in (few, many)],
        "sop_accuracy": [3, 50],
    }
    for name, by in weights.items():
        assert both[name] == pytest.approx(np.average([of_few[name], of_many[name]], weights=by))
        assert of_few[name] != of_many[name]
