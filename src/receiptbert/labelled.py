"""What a classifier is finetuned on: labelled texts for a given tokenizer, and perhaps unlabelled ones."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from receiptbert.errors import PRETOKENIZE_AGAIN, UserError
from receiptbert.params import FinetuneParams
from receiptbert.progress import say
from receiptbert.split_texts import load_texts
from receiptbert.splits import TRAIN
from receiptbert.token_store import TokenStore, store_path
from receiptbert.tokenization import WordpieceTokenizer

MANY_UNKNOWN = 0.05  # of the tokens: the vocabulary is of another language, or of other lines
UNLABELLED_PER_LABEL = 2  # texts in an epoch, if there are that many


class Labelled(NamedTuple):
    """The labelled texts of a split, tokenized."""

    texts: TokenStore  # n texts
    targets: npt.NDArray[np.int64]  # their class ids (n,)


class TrainingSet(NamedTuple):
    """What a classifier is finetuned on, and with what settings.

    An epoch is a pass over the labelled texts, with the next of the unlabelled ones mixed in.
    """

    texts: TokenStore  # n labelled ones, then U unlabelled ones
    targets: npt.NDArray[Any]  # class ids (n,) int64; or probabilities of the classes (n + U, C) float32
    num_labelled: int  # n
    epochs: int
    batch_size: int  # labelled texts, on average
    label_smoothing: float

    @property
    def num_unlabelled(self) -> int:
        """U."""
        return len(self.texts) - self.num_labelled

    @property
    def num_drawn(self) -> int:
        """Unlabelled texts in an epoch; none of them twice."""
        return min(UNLABELLED_PER_LABEL * self.num_labelled, self.num_unlabelled)

    @property
    def num_batches(self) -> int:
        """Batches, and optimizer steps, in an epoch."""
        return math.ceil(self.num_labelled / self.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all epochs."""
        return self.num_batches * self.epochs


def training_set(texts: TokenStore, targets: npt.NDArray[np.int64], p: FinetuneParams) -> TrainingSet:
    """``p.epochs`` passes over the texts, or the least multiple of it with ``p.min_steps`` steps or more.

    Few labels need more passes, not fewer steps (Mosbach et al. 2021; measured in docs/LOG.md).
    """
    once = TrainingSet(texts, targets, len(texts), p.epochs, p.batch_size, p.label_smoothing)
    times = max(1, math.ceil(p.min_steps / once.num_steps))
    return once._replace(epochs=times * p.epochs)


def load_labelled(tokenized: Path, split: str, tokenizer: WordpieceTokenizer) -> Labelled:
    """The texts of ``split`` as ids of ``tokenizer``, and their classes, in the order of the corpus.

    Taken from the token store where it was made with this tokenizer; tokenized again where a model from
    elsewhere (``finetune.init``) brings a vocabulary of its own.

    Raises:
        UserError: the split is not in ``tokenized``, or damaged.
    """
    stored = _load(tokenized, split)
    if stored.texts.tokenizer_fingerprint == tokenizer.fingerprint:
        return stored
    texts = TokenStore.from_texts(load_texts(tokenized, split, len(stored.texts)), tokenizer)
    unknown = np.count_nonzero(texts.ids == tokenizer.unk_token_id) / max(len(texts.ids), 1)
    if unknown > MANY_UNKNOWN:
        say(f"warning: {unknown:.0%} of the tokens of {split} are unknown to the model from finetune.init")
    return stored._replace(texts=texts)


def majority_class(tokenized: Path) -> int:
    """The id of the most frequent class in train; in a tie, the lowest.

    Raises:
        UserError: train is not in ``tokenized``, or damaged.
    """
    return int(np.bincount(_load(tokenized, TRAIN).targets).argmax())


def _load(tokenized: Path, split: str) -> Labelled:
    path = store_path(tokenized, split)
    store = TokenStore.load(path)
    if store.labels is None:
        raise UserError(f"{path} has no labels; {PRETOKENIZE_AGAIN}")
    return Labelled(store, store.labels)
