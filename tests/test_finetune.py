"""The stage itself, in this process: teachers, what they hand on, and a kill in any of them."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import finetune
import pipeline
from receiptbert import BertFinetuneModel, WordpieceTokenizer, distillation
from receiptbert.base_trainer import BaseTrainer
from receiptbert.calibration import fit_temperature
from receiptbert.corpus_facts import Classes
from receiptbert.distillation import teacher_seed
from receiptbert.finetune_trainer import FinetuneTrainer
from receiptbert.finetuning import Finetuning
from receiptbert.hf_format import save_pretrained
from receiptbert.inference import inference_loader, predict_logits
from receiptbert.labelled import TrainingSet, training_set
from receiptbert.linear_teacher import LinearTeacher
from receiptbert.metrics import f1
from receiptbert.params_file import load_params
from receiptbert.partial_embedding import only_tokens, tokens_in
from receiptbert.plan import Plan
from receiptbert.sampling import MixtureBatchSampler
from receiptbert.saved_classifier import load_classifier
from receiptbert.split_texts import save_texts
from receiptbert.token_store import TokenStore, store_path
from tests.conftest import ROOT, Cut
from tests.projects import logged, with_value
from tests.small_trainings import labelled

SETTINGS = {
    "finetune.epochs": "2",
    "finetune.min_steps": "0",
    "finetune.batch_size": "40",
    "finetune.teachers": "2",
    "finetune.precision": "fp32",
    "runtime.device": "cpu",
    "runtime.checkpoint_seconds": "0",
}
SIZES = {"train": 80, "val": 40, "unsupervised": 80}
# 2 batches an epoch of each teacher, and of the final model: its pool is 80 + 80 texts in batches of 80.
STEPS = 2 * 2 * 2 + 2 * 2


@pytest.fixture
def run(
    texts: list[str],
    tokenizer: WordpieceTokenizer,
    pretrain_model: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict[Path, bytes]]:
    """Run the stage in a project of its own; its outputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("receiptbert.checkpoints.REST", 0)
    lines, classes = labelled(texts)
    first = 0
    pipeline.TOKENIZED.mkdir(parents=True)
    for split, size in SIZES.items():
        some, their = lines[first : first + size], classes[first : first + size]
        TokenStore.from_texts(some, tokenizer, their).save(pipeline.TOKENIZED / f"{split}.safetensors")
        save_texts(pipeline.TOKENIZED, split, some)
        first += size
    Classes(labels=list("012"), names=list("абв")).save(pipeline.CLASSES)
    save_pretrained(pretrain_model(), tokenizer, pipeline.PRETRAINED)

    def run(**overrides: str) -> dict[Path, bytes]:
        document = (ROOT / "params.yaml").read_text()
        for key, value in (SETTINGS | {f"finetune.{key}": value for key, value in overrides.items()}).items():
            document = with_value(document, key, value)
        (tmp_path / "params.yaml").write_text(document)
        finetune.finetune(load_params(tmp_path / "params.yaml"))
        outputs = [*pipeline.FINETUNED.iterdir(), *pipeline.METRICS.rglob("*.*")]
        return {path: path.read_bytes() for path in outputs}

    return run


def test_a_stage_cut_off_in_any_of_its_models_ends_as_if_it_were_not(
    run: Callable[..., dict[Path, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backward, steps, cuts = BaseTrainer._backward, [0], set[int]()

    def count(trainer: Any, loss: Any) -> None:
        if steps[0] in cuts:
            cuts.remove(steps[0])
            raise Cut
        steps[0] += 1
        backward(trainer, loss)

    monkeypatch.setattr(BaseTrainer, "_backward", count)
    whole = run()
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
            run()
    assert run() == whole
    assert steps == [STEPS]  # none was done twice
    assert not list(pipeline.CHECKPOINTS.rglob("*.safetensors"))


def test_teachers_are_seen_in_the_metrics_and_the_model(run: Callable[..., dict[Path, bytes]]) -> None:
    metrics, weights = pipeline.METRICS / "finetune.json", pipeline.FINETUNED / "model.safetensors"
    taught, alone = run(teachers="1"), run(teachers="0")
    of_teachers = {"teacher_val_weighted_f1", "linear_val_weighted_f1"}
    assert json.loads(taught[metrics]).keys() - json.loads(alone[metrics]).keys() == of_teachers
    assert json.loads(taught[metrics])["linear_val_weighted_f1"] > 0.5
    assert taught[weights] != alone[weights]
    # The teacher is the model that this seed gives without teachers.
    as_teacher = json.loads(run(teachers="0", seed=str(teacher_seed(0, 1)))[metrics])
    assert json.loads(taught[metrics])["teacher_val_weighted_f1"] == as_teacher["val_weighted_f1"]


def test_each_unsupervised_text_has_the_answer_of_both_kinds_of_teachers(
    run: Callable[..., dict[Path, bytes]],
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
    run(teachers="2")
    monkeypatch.setattr(LinearTeacher, "probabilities", lambda _, texts: np.zeros((len(texts), 3)))
    run(teachers="1", epochs="20", lr="1e-2", batch_size="20", dropout="0.0")
    (linear, totals), (bert, halves) = found
    assert linear > 0.6  # a third would be chance
    assert bert > 0.6
    np.testing.assert_allclose(totals, 1, rtol=1e-5)
    np.testing.assert_allclose(halves, 0.5, rtol=1e-5)


def test_teachers_learn_labels_and_the_final_model_what_the_teachers_say_too(
    run: Callable[..., dict[Path, bytes]], tokenizer: WordpieceTokenizer, monkeypatch: pytest.MonkeyPatch
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
    run(teachers="1", label_smoothing="0.2")
    assert drawn == [(80, 2), (80 + 80, 2)]
    # The labels of the final model's pool are smoothed already, the teachers' answers never are.
    assert trainers == [(0.2, "torch", False), (0.0, "torch", False)]
    texts = [
        TokenStore.load(pipeline.TOKENIZED / f"{split}.safetensors") for split in ("train", "unsupervised")
    ]
    for ids, store in zip(trained, (texts[0], texts[0].followed_by(texts[1])), strict=True):
        assert torch.equal(ids, tokens_in(store, tokenizer))


def test_the_rate_of_finetuning_rises_and_falls(run: Callable[..., dict[Path, bytes]]) -> None:
    run(teachers="0", epochs="4", warmup="0.5", lr="8e-4", final_lr="0.0")
    rates = [0, 2e-4, 4e-4, 6e-4, 8e-4, 6e-4, 4e-4, 2e-4]
    assert list(logged(*Path("runs/finetune").iterdir())["lr"].values()) == pytest.approx(rates)


def test_each_model_has_a_seed_of_its_own(
    run: Callable[..., dict[Path, bytes]], monkeypatch: pytest.MonkeyPatch
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
    run(teachers="2", epochs="1", seed="5")
    assert of_weights == of_batches == [teacher_seed(5, 1), teacher_seed(5, 2), 5]


@pytest.mark.parametrize(
    ("texts", "min_steps", "epochs"),
    [(1000, 300, 12), (1000, 385, 24), (33, 300, 156), (5, 0, 12), (1, 1, 12)],
)
def test_few_labels_are_passed_over_more_often(texts: int, min_steps: int, epochs: int) -> None:
    p = replace(load_params(ROOT / "params.yaml").finetune, epochs=12, batch_size=32, min_steps=min_steps)
    blank = TokenStore(np.empty(0, np.uint16), np.zeros(texts + 1, int), None, "v")
    assert training_set(blank, np.zeros(texts, int), p).epochs == epochs


def test_the_stage_makes_the_steps_that_few_labels_want(
    run: Callable[..., dict[Path, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    run(teachers="0", min_steps="5")  # 2 epochs of 2 steps each are too few
    assert "few labels: 4 epochs instead of 2, for finetune.min_steps = 5" in capsys.readouterr().err
    rates = logged(*Path("runs/finetune").iterdir())["lr"]  # no warm-up: 0.06 of 8 steps is none
    expected = [1e-6 + (8e-4 - 1e-6) * (8 - step) / 8 for step in range(8)]
    assert list(rates.values()) == pytest.approx(expected, rel=1e-4)
    judged = (pipeline.PLOTS / "finetune.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in judged] == ["2", "4"]  # as often as with enough labels
    run(teachers="0", min_steps="4")
    assert "few labels" not in capsys.readouterr().err
    assert len((pipeline.PLOTS / "finetune.csv").read_text().splitlines()) == 1 + 2


def test_a_long_text_is_planned_for_and_pads_few_others_of_val(
    run: Callable[..., dict[Path, bytes]], tokenizer: WordpieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr("receiptbert.finetuning.announce", lambda plan, _: plans.append(plan))
    shapes: list[torch.Size] = []
    eval_step = FinetuneTrainer._eval_step

    def watch(trainer: FinetuneTrainer, dataloader: Any) -> float:
        shapes.extend(ids.shape for ids, _ in dataloader)
        return eval_step(trainer, dataloader)

    monkeypatch.setattr(FinetuneTrainer, "_eval_step", watch)
    run(batch_size="8", teachers="0")
    shapes.clear()
    for split in ("train", "val"):
        path = store_path(pipeline.TOKENIZED, split)
        store = TokenStore.load(path)
        assert store.labels is not None
        words = [" ".join(["чай"] * 12), *["чай"] * (len(store) - 1)]
        TokenStore.from_texts(words, tokenizer, store.labels.tolist()).save(path)
        save_texts(pipeline.TOKENIZED, split, words)
    run(batch_size="8", teachers="0")
    usual, with_a_long_text = (plan.largest_batch_ratio for plan in plans)
    assert with_a_long_text > 1.5 * usual
    (long,) = {shape for shape in shapes if shape[1] == max(width for _, width in shapes)}
    assert long[0] < 8


def test_finetuning_begins_at_the_pretrained_weights(run: Callable[..., dict[Path, bytes]]) -> None:
    def encoder(folder: Path) -> dict[str, torch.Tensor]:
        weights = load_file(folder / "model.safetensors")
        return {name: weight for name, weight in weights.items() if name.startswith("bert.encoder.")}

    still = {"teachers": "0", "epochs": "1", "lr": "1e-9", "final_lr": "0.0"}
    run(**still)
    pretrained = encoder(pipeline.PRETRAINED)
    assert pretrained
    torch.testing.assert_close(encoder(pipeline.FINETUNED), pretrained, atol=1e-6, rtol=0)
    run(**still, init="scratch")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert (encoder(pipeline.FINETUNED)[name] - pretrained[name]).abs().mean() > 0.01


def test_teachers_label_texts_part_by_part(
    run: Callable[..., dict[Path, bytes]], tokenizer: WordpieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pool, pools = distillation.distillation_pool, []

    def note(*args: Any) -> TrainingSet:
        pools.append(make_pool(*args))
        return pools[-1]

    plans: list[Plan] = []
    monkeypatch.setattr(distillation, "distillation_pool", note)
    monkeypatch.setattr("receiptbert.finetuning.announce", lambda plan, _: plans.append(plan))
    run(teachers="2", epochs="1")
    monkeypatch.setattr(distillation, "AT_ONCE", 7)
    run(teachers="2", epochs="1")
    at_once, in_parts = pools
    assert at_once.num_unlabelled > 7
    np.testing.assert_allclose(in_parts.targets, at_once.targets, atol=1e-6)
    for plan in plans:  # of the final model
        assert (plan.texts, plan.steps) == (80, 2)
        assert plan.soft_targets == at_once.targets.size
        assert plan.trained_tokens == len(tokens_in(at_once.texts, tokenizer))


def test_the_metrics_and_the_temperature_are_those_of_the_weights(
    run: Callable[..., dict[Path, bytes]], tokenizer: WordpieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.1, 0.7, 0.3])
    monkeypatch.setattr("receiptbert.finetuning.make_scorer", lambda *_: lambda _: ("f1", next(values)))
    run(teachers="0", epochs="3", lr="1e-2")
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
    run: Callable[..., dict[Path, bytes]],
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
    run(teachers=teachers)
    ((logits, true),) = fitted
    assert true.tolist() == val.labels[val.labels != 2].tolist() != val.labels.tolist()
    assert len(logits) == len(true)


@pytest.mark.parametrize("changed", [None, "test", "texts", "classes", "pretrained"])
def test_a_stage_goes_on_only_with_the_same_inputs(
    run: Callable[..., dict[Path, bytes]],
    tokenizer: WordpieceTokenizer,
    pretrain_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: str | None,
) -> None:
    def cut(*_: Any) -> float:
        raise Cut

    monkeypatch.setattr("finetune.fit_temperature", cut)  # trained, and nothing written
    with pytest.raises(Cut):
        run(teachers="0")
    assert "resumed" not in capsys.readouterr().err
    if changed == "test":
        save_texts(pipeline.TOKENIZED, "test", ["б"])
    elif changed == "texts":
        save_texts(pipeline.TOKENIZED, "unsupervised", ["б"])
    elif changed == "classes":
        Classes(labels=list("012"), names=list("абг")).save(pipeline.CLASSES)
    elif changed == "pretrained":
        save_pretrained(pretrain_model(act_func="relu"), tokenizer, pipeline.PRETRAINED)
    with pytest.raises(Cut):
        run(teachers="0")
    assert ("resumed after step 4" in capsys.readouterr().err) == (changed in (None, "test"))


def test_the_seed_decides_which_unsupervised_texts_come_first(
    run: Callable[..., dict[Path, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pool, found = distillation.distillation_pool, []

    def note(train: TrainingSet, unlabelled: TokenStore, probabilities: Any) -> TrainingSet:
        found.append([unlabelled[i].tolist() for i in range(len(unlabelled))])
        return make_pool(train, unlabelled, probabilities)

    monkeypatch.setattr(distillation, "distillation_pool", note)
    for seed in ("1", "2"):
        run(teachers="1", epochs="1", seed=seed)
    assert found[0] != found[1]
    assert sorted(found[0]) == sorted(found[1])


def test_the_score_that_chooses_the_epoch_is_that_of_val(
    run: Callable[..., dict[Path, bytes]], tokenizer: WordpieceTokenizer
) -> None:
    run(teachers="0", epochs="10", lr="1e-2", batch_size="20")
    val = TokenStore.load(pipeline.TOKENIZED / "val.safetensors", tokenizer)
    model, loader = load_classifier(pipeline.FINETUNED).model, inference_loader(val, tokenizer, 12)
    logits = predict_logits(model, loader, tokenizer.pad_token_id, torch.device("cpu"))
    assert val.labels is not None
    predicted = logits.argmax(axis=1)
    assert len(set(predicted)) > 1
    score = f1(val.labels, predicted, "weighted")
    metrics = json.loads((pipeline.METRICS / "finetune.json").read_text())
    assert metrics["val_weighted_f1"] == pytest.approx(score, abs=1e-5)
