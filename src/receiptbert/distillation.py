"""Teach one model what an ensemble of several knows (Hinton et al. 2015).

The ensemble says how probable each class is for unlabelled texts of the same kind, and the model learns that
alongside the labels (Buciluă et al. 2006; for BERT, Tang et al. 2019). The loss is the cross entropy with the
ensemble's probabilities: neither softened by a temperature, as in Hinton et al., nor the squared error of
logits, as in Tang et al. In the ensemble, the linear model has half of the weight (docs/LOG.md compares
shares).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from receiptbert.distributed import from_main_process
from receiptbert.finetuning import Finetuning, Run
from receiptbert.labelled import UNLABELLED_PER_LABEL, Labelled, TrainingSet
from receiptbert.linear_teacher import LinearTeacher, Probabilities
from receiptbert.metrics import f1
from receiptbert.progress import say
from receiptbert.split_texts import draw_texts, load_texts
from receiptbert.splits import TRAIN, UNSUPERVISED, VAL
from receiptbert.token_store import TokenStore
from receiptbert.tokenization import WordpieceTokenizer

TEXTS_AT_ONCE = 100_000  # texts whose logits are in memory at once


class TeachingTexts(NamedTuple):
    """What teachers read."""

    train: list[str]
    val: list[str]
    unlabelled: list[str]  # U texts that they are to label
    unlabelled_ids: TokenStore  # the same, tokenized


def read_teaching_texts(
    tokenized: Path, train: TrainingSet, val: Labelled, tokenizer: WordpieceTokenizer, seed: int
) -> TeachingTexts:
    """The raw texts beside the token stores; as many unsupervised ones as the final model will see.

    Raises:
        UserError: their files cannot be read, or differ in the number of texts from ``train`` and ``val``.
    """
    # An epoch of it mixes in so many for each label; if there are as many in all, none comes twice.
    number = UNLABELLED_PER_LABEL * train.num_labelled * train.epochs
    unlabelled = draw_texts(tokenized, UNSUPERVISED, number, seed)
    return TeachingTexts(
        load_texts(tokenized, TRAIN, len(train.texts)),
        load_texts(tokenized, VAL, len(val.texts)),
        unlabelled,
        TokenStore.from_texts(unlabelled, tokenizer),
    )


def distil(
    finetuning: Finetuning,
    train: TrainingSet,
    val: Labelled,
    texts: TeachingTexts,
    seed: int,
    teachers: Sequence[Run],
) -> tuple[TrainingSet, dict[str, float]]:
    """Train the teachers, each with its own seed, and have them and a linear one label texts.

    Args:
        finetuning: trains them.
        train: what they are trained on; ``val`` decides the best epoch of each.
        texts: the raw texts of train and val, and those to label.
        seed: of the student; ``teacher_seed`` derives those of the teachers.
        teachers: the run of each.

    Returns:
        what the student is to be trained on, and the scores of the teachers on val.
    """

    def linear_teacher() -> tuple[Probabilities, float]:
        linear = LinearTeacher(texts.train, train.targets, texts.val, val.targets, finetuning.num_classes)
        predicted = linear.probabilities(texts.val).argmax(axis=1)
        return linear.probabilities(texts.unlabelled), f1(val.targets, predicted, "weighted")

    # (U, C). Only the main process fits it: that takes gigabytes.
    linear_answers, linear_f1 = from_main_process(linear_teacher)
    say(f"linear teacher: weighted F1 on val {linear_f1:.4f}")

    answers = np.zeros_like(linear_answers)  # (U, C), the BERTs' mean; later averaged with the linear teacher
    scores = []
    for number, run in enumerate(teachers, start=1):
        say(f"teacher {number} of {len(teachers)}")
        model, _, best, _ = finetuning.train(train, val, teacher_seed(seed, number), run)
        for rows in np.split(np.arange(len(answers)), range(TEXTS_AT_ONCE, len(answers), TEXTS_AT_ONCE)):
            logits = finetuning.logits(model, texts.unlabelled_ids.take(rows))
            answers[rows] += softmax(logits, axis=1) / len(teachers)
        scores.append(best["f1"])
        del model  # frees memory for the next one
    answers += linear_answers
    answers /= 2
    del linear_answers  # makes room for the pool
    say(f"final model: {train.num_labelled:,} labelled and {len(texts.unlabelled):,} unsupervised texts")
    pool = distillation_pool(train, texts.unlabelled_ids, answers)
    return pool, {"teacher_val_weighted_f1": float(np.mean(scores)), "linear_val_weighted_f1": linear_f1}


def teacher_seed(seed: int, number: int) -> int:
    """The seed of teacher ``number`` of the student with ``seed``: far from it, so that neighbouring seeds,
    common in runs to be compared, share no teacher."""
    return int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0])


def distillation_pool(
    labelled: TrainingSet, unlabelled: TokenStore, probabilities: Probabilities
) -> TrainingSet:
    """Both kinds of texts, to be trained on in as many steps as the labelled ones alone.

    Args:
        labelled: n texts with class ids, and how a model is trained on them alone.
        unlabelled: U texts.
        probabilities: what the teachers predict for them, shape (U, C).

    Returns:
        n + U texts with probabilities as targets; those of the labelled texts are smoothed.
    """
    num_classes = probabilities.shape[1]
    certain = np.eye(num_classes, dtype=np.float32)[labelled.targets]  # (n, C)
    smoothed = (1 - labelled.label_smoothing) * certain + labelled.label_smoothing / num_classes
    return labelled._replace(
        texts=labelled.texts.followed_by(unlabelled),
        targets=np.concatenate([smoothed, probabilities], dtype=np.float32),
        label_smoothing=0.0,
    )
