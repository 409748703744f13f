"""Teach one model what an ensemble of several knows (Hinton et al. 2015).

The ensemble says how probable each class is for texts that no one labelled but that are of the same kind, and
the model learns that beside the labels (Buciluă et al. 2006; for BERT, Tang et al. 2019).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from receiptbert.checkpoints import Checkpoints
from receiptbert.corpus import SPLIT, TEXT, TRAIN, UNSUPERVISED, VAL, read_corpus
from receiptbert.distributed import from_leader
from receiptbert.finetuning import Finetuning
from receiptbert.labelled import Labelled, TrainingSet
from receiptbert.linear_teacher import LinearTeacher, Probabilities
from receiptbert.metrics import f1
from receiptbert.progress import say
from receiptbert.token_store import TokenStore

UNLABELLED = 2  # texts without a label to each with one, as nearly as whole passes over both allow


class Mixture(NamedTuple):
    """How a training goes over labelled and unlabelled texts together."""

    repeats: int  # of each labelled text in a pass
    epochs: int
    batch_size: int  # texts, on average


class TeachingTexts(NamedTuple):
    """What teachers read."""

    train: list[str]
    val: list[str]
    unlabelled: list[str]  # that they are to label


def read_teaching_texts(corpus: Path, labelled: TrainingSet, seed: int) -> TeachingTexts:
    """The texts of ``corpus``; of the unsupervised ones, what a training on ``labelled`` has time for."""
    rows = read_corpus(corpus)
    train, val, unsupervised = (
        rows.loc[rows[SPLIT] == split, TEXT].tolist() for split in (TRAIN, VAL, UNSUPERVISED)
    )
    return TeachingTexts(train, val, draw_unlabelled(unsupervised, labelled, seed))


def distil(
    finetuning: Finetuning,
    train: TrainingSet,
    val: Labelled,
    texts: TeachingTexts,
    seed: int,
    teachers: Sequence[tuple[Checkpoints, str]],
) -> tuple[TrainingSet, dict[str, float]]:
    """Train the teachers, each with another seed, and have them and a linear one label texts.

    Args:
        finetuning: makes them.
        train: what they learn; ``val`` tells the best epoch of each.
        texts: those of train and val as they are written, and those to label.
        seed: of the model that is to be taught; the teachers have the next ones.
        teachers: the checkpoints of each, and a folder for its TensorBoard events.

    Returns:
        what that model is to be trained on, and the scores of the teachers on val.
    """

    def linear_teacher() -> tuple[Probabilities, float]:
        linear = LinearTeacher(texts.train, train.targets, texts.val, val[1], finetuning.num_classes)
        predicted = linear.probabilities(texts.val).argmax(axis=1)
        return linear.probabilities(texts.unlabelled), f1(val[1], predicted, "weighted")

    linear_answers, linear_f1 = from_leader(linear_teacher)  # gigabytes in each process else
    say(f"linear teacher: weighted F1 on val {linear_f1:.4f}")

    store = TokenStore.from_texts(texts.unlabelled, finetuning.tokenizer)
    answers = np.zeros_like(linear_answers)  # of the BERTs, their mean; then of those and the linear teacher
    scores = []
    for number, (checkpoints, logdir) in enumerate(teachers, start=1):
        say(f"teacher {number} of {len(teachers)}")
        teacher = finetuning.train(train, val, seed + number, logdir, checkpoints)
        answers += softmax(finetuning.logits(teacher.model, store), axis=1) / len(teachers)
        scores.append(teacher.best["f1"])
    answers += linear_answers
    answers /= 2
    say(f"final model: {len(train.texts):,} labelled and {len(store):,} unsupervised texts")
    pool = distillation_pool(train, store, answers)
    return pool, {"teacher_val_weighted_f1": float(np.mean(scores)), "linear_val_weighted_f1": linear_f1}


def draw_unlabelled(texts: Sequence[str], labelled: TrainingSet, seed: int) -> list[str]:
    """As many of ``texts``, chosen at random, as a training on ``labelled`` has time for, or all of them."""
    order = np.random.default_rng(seed).permutation(len(texts))
    return [texts[i] for i in order[: UNLABELLED * len(labelled.texts) * labelled.epochs]]


def mixture(labelled: TrainingSet, num_unlabelled: int) -> Mixture:
    """As many passes over each label, and as many steps, as a training on ``labelled`` alone has.

    What is left to choose is how often the unlabelled texts come: the passes over them divide those over
    the labels. A batch has as many labelled texts as before, and unlabelled ones on top.
    """
    num_labelled, passes = len(labelled.texts), labelled.epochs
    wanted = UNLABELLED * num_labelled * passes / max(num_unlabelled, 1)
    divisors = [number for number in range(1, passes + 1) if passes % number == 0]
    epochs = min(divisors, key=lambda number: abs(number - wanted))
    repeats = passes // epochs
    batches = repeats * math.ceil(num_labelled / labelled.batch_size)  # of so few texts, they may not be full
    batch_size = round((repeats * num_labelled + num_unlabelled) / batches)
    return Mixture(repeats, epochs, batch_size)


def distillation_pool(
    labelled: TrainingSet, unlabelled: TokenStore, probabilities: Probabilities
) -> TrainingSet:
    """The labelled texts, repeated as ``mixture`` says, among the unlabelled ones.

    Args:
        labelled: n texts with class ids, and how a model is trained on them alone.
        unlabelled: U texts.
        probabilities: what the teachers say of them, shape (U, C).

    Returns:
        n * repeats + U texts with probabilities as targets; those of labelled texts are smoothed.
    """
    num_labelled, num_classes = len(labelled.texts), probabilities.shape[1]
    repeats, epochs, batch_size = mixture(labelled, len(unlabelled))
    certain = np.eye(num_classes, dtype=np.float32)[labelled.targets]  # (n, C)
    smoothed = (1 - labelled.label_smoothing) * certain + labelled.label_smoothing / num_classes
    rows = np.concatenate(
        [np.tile(np.arange(num_labelled), repeats), num_labelled + np.arange(len(unlabelled))]
    )
    return TrainingSet(
        labelled.texts.followed_by(unlabelled).take(rows),
        np.concatenate([np.tile(smoothed, (repeats, 1)), probabilities], dtype=np.float32),
        epochs,
        batch_size,
        label_smoothing=0.0,
    )
