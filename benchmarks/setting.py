"""What contestants of a benchmark share: corpus as token ids, shape, batch size, device; and the clock."""

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from common import add_overrides, positive, read_archive, shipped_params, train_tokenizer
from receiptbert.corpus import label_list
from receiptbert.corpus_facts import longest_used
from receiptbert.devices import choose_device
from receiptbert.encoder import BertShape
from receiptbert.params import Params
from receiptbert.precision import choose_precision
from receiptbert.pretraining import Pretraining, min_text_length, model_shape
from receiptbert.sizes import SIZES, follow_width
from receiptbert.splits import LABEL, SPLIT, TEXT, TRAIN, UNSUPERVISED
from receiptbert.token_store import TokenStore
from receiptbert.tokenization import WordpieceTokenizer

MIN_STEPS = 4  # in a round: batches differ in length


class Task(NamedTuple):
    """How a training is timed."""

    batch_size: int  # texts, on average
    seconds: float  # of each contestant in each round, at least ``MIN_STEPS``
    warm_up: float  # seconds before that, at least one step


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The task that every contestant gets."""

    params: Params
    tokenizer: WordpieceTokenizer
    lines: list[str]
    unlabelled: TokenStore  # of the lines that are long enough
    train: TokenStore
    targets: npt.NDArray[np.int64]
    num_classes: int
    shape: BertShape
    device: torch.device
    precision: str

    def pretraining(self) -> Pretraining:
        """Our pretraining as its stage has it: ``params`` alone decide its shape and precision."""
        return Pretraining(self.params, self.unlabelled, self.tokenizer, self.shape.maxlen, self.device)

    def inputs(self, store: TokenStore) -> list[list[int]]:
        """``[CLS] text [SEP]`` of every text as a list of ids."""
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return [[cls, *store[i][: self.shape.maxlen].tolist(), sep] for i in range(len(store))]


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``read_setting``."""
    parser.add_argument("--size", choices=SIZES, default="mini", help="shape of the model")
    parser.add_argument(
        "--vocab-size", type=positive, help="entries of the model, if more than the corpus fills"
    )
    add_overrides(parser, ", for what is read here: not for batch size or device")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--device", default="auto")


def read_setting(args: argparse.Namespace, precision: str = "auto") -> Setting:
    """Tokenize the corpus and put the task together; ``precision`` is as in ``choose_precision``."""
    params = shipped_params([f"model.size={args.size}", *args.overrides])  # what `auto` means
    corpus = read_archive(args.corpus)
    tokenizer = _with_entries(train_tokenizer(corpus, params.tokenizer), args.vocab_size or 0)
    lines = corpus.loc[corpus[SPLIT] == UNSUPERVISED, TEXT].tolist()
    unlabelled = TokenStore.from_texts(lines, tokenizer)
    longest = longest_used(unlabelled.lengths, params.pretokenize.max_length_quantile)
    rows = corpus[corpus[SPLIT] == TRAIN]
    labels = label_list(corpus)
    device = choose_device(args.device, key="--device")
    return Setting(
        params=params,
        tokenizer=tokenizer,
        lines=lines,
        unlabelled=unlabelled.take(unlabelled.lengths >= min_text_length(params.pretrain.mask_prob)),
        train=TokenStore.from_texts(rows[TEXT], tokenizer),
        targets=pd.Categorical(rows[LABEL], categories=labels).codes.astype(np.int64),
        num_classes=len(labels),
        shape=model_shape(params.model, tokenizer.vocab_size, longest),
        device=device,
        precision=choose_precision(precision, device, "--precision"),
    )


def _with_entries(tokenizer: WordpieceTokenizer, entries: int) -> WordpieceTokenizer:
    """``tokenizer`` with at least so many ``entries``, the rest as in published BERTs: in no text."""
    unused = [f"[unused{number}]" for number in range(entries - tokenizer.vocab_size)]
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary = Path(scratch) / "vocab.txt"
        vocabulary.write_text("\n".join([*tokenizer.tokens, *unused]), encoding="utf-8")
        return WordpieceTokenizer(vocabulary)


def shape_of(size: str) -> dict[str, Any]:
    """What a size of ``SIZES`` says of a model's shape."""
    own = {"hidden_size": SIZES[size].hidden_size, "num_hidden_layers": SIZES[size].num_hidden_layers}
    return own | follow_width(SIZES[size].hidden_size)


class Stopwatch:
    """Counts the tokens that a model sees, and the seconds, once it has warmed up."""

    def __init__(self, setting: Setting, task: Task) -> None:
        self._device, self._task = setting.device, task
        self._pad_token_id = setting.tokenizer.pad_token_id
        self._seen: list[torch.Tensor] = []
        self._start = time.perf_counter()
        self._warm = False

    def saw(self, input_ids: torch.Tensor) -> None:
        """Call it with each batch, before the step."""
        self._seen.append((input_ids != self._pad_token_id).sum())  # on the device: nothing waits for it

    def step(self) -> bool:
        """Call it after each step; True when the time is up."""
        elapsed = time.perf_counter() - self._start
        if not self._warm and elapsed >= self._task.warm_up:
            self._wait()
            self._seen.clear()
            self._start = time.perf_counter()
            self._warm = True
            return False
        return self._warm and elapsed > self._task.seconds and len(self._seen) >= MIN_STEPS

    def rate(self) -> float:
        """Tokens per second; call it once, at the end."""
        self._wait()
        elapsed = time.perf_counter() - self._start
        return float(torch.stack(self._seen).sum()) / elapsed

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def new_seed() -> int:
    """Another one in each round, so that each has other batches; the Trainer seeds Python's own numbers."""
    return SystemRandom().getrandbits(32)


class Timed:
    """The batches of ``loader``, over and over, until the watch says stop."""

    def __init__(self, loader: Iterable[Any], watch: Stopwatch) -> None:
        self._loader, self._watch = loader, watch

    def __len__(self) -> int:
        return 1 << 30

    def __iter__(self) -> Iterator[Any]:
        while True:
            for batch in self._loader:
                self._watch.saw(batch[0])
                yield batch
                if self._watch.step():
                    return
