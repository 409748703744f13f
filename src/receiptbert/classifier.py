"""The finished classifier: texts in, labels with their confidence out."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from receiptbert.choices import PREDICTION_BATCH_SIZE
from receiptbert.devices import choose_device
from receiptbert.inference import inference_loader, logits_by_batch
from receiptbert.modeling import BertFinetuneModel
from receiptbert.precision import choose_precision
from receiptbert.saved_classifier import load_classifier
from receiptbert.token_store import TokenStore
from receiptbert.tokenization import WordpieceTokenizer

SURROGATE = re.compile("[\ud800-\udfff]")  # which JSON may have without its other half


class Candidate(NamedTuple):
    """One class that a text may belong to; the fields are those of ``Prediction``."""

    label: str
    category: str
    confidence: float


class Prediction(NamedTuple):
    """What a text is classified as.

    A text without a single token (empty, or blanks) has an empty label and category and a confidence of 0.

    Attributes:
        label: as in the corpus that the model was finetuned on; the category, if the model has no labels.
        category: the name of the class, the same string that ``transformers.pipeline`` returns.
        confidence: the probability of the class, from 0 to 1.
        runners_up: the next best classes, the best first.
    """

    label: str
    category: str
    confidence: float
    runners_up: tuple[Candidate, ...] = ()


NOTHING_TO_READ = Prediction("", "", 0.0)


class Classifier:
    """A finetuned model, its tokenizer and its classes; ``from_pretrained`` makes one.

    It can be pickled for worker processes, and called from several threads at once: a call changes nothing
    but the state of torch's random numbers.

    Args:
        model: on ``device``.
        tokenizer: the model's.
        classes: label and category of each class, in the order of their ids.
        temperature: what logits are divided by, so that confidences are probabilities.
        device: where to compute.
        precision: fp32, bf16 or fp16, of the matrix products.
        batch_size: texts of average length that are computed at once.
    """

    def __init__(
        self,
        model: BertFinetuneModel,
        tokenizer: WordpieceTokenizer,
        classes: list[tuple[str, str]],
        temperature: float,
        device: torch.device,
        precision: str,
        batch_size: int,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size} must be at least 1")
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._classes = classes
        self._temperature = temperature
        self._device = device
        self._precision = precision
        self._batch_size = batch_size
        self._maxlen = model.shape.maxlen

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device = "auto",
        precision: str = "fp32",
        batch_size: int = PREDICTION_BATCH_SIZE,
    ) -> "Classifier":
        """Load what finetune wrote, or any Hugging Face ``BertForSequenceClassification``.

        Args:
            folder: where it is.
            device: ``auto`` is the GPU if there is one, else the CPU; or ``cpu``, ``cuda:1``, one of torch's.
            precision: ``fp32`` gives the labels that ``evaluate`` scores, but none to blank texts; ``bf16``
                and ``fp16`` are faster where the hardware has them, and may decide a close call differently;
                ``auto`` chooses.
            batch_size: of texts of average length; it changes only speed and memory.

        Raises:
            UserError: no such folder, no finetuned BERT in it, or no such device.
        """
        folder = Path(folder)
        where = choose_device(str(device), key="device")
        precision = choose_precision(precision, where, "precision")
        saved = load_classifier(folder)
        classes = list(zip(saved.labels, saved.names, strict=True))
        return cls(
            saved.model.to(where), saved.tokenizer, classes, saved.temperature, where, precision, batch_size
        )

    def __call__(self, texts: Iterable[str], top_k: int = 1) -> list[Prediction]:
        """Classify ``texts``, equal ones once; a long text is truncated to what the model can read.

        Args:
            texts: many texts; for a single one, a list of one.
            top_k: how many classes to return for each text: the predicted one and ``top_k - 1`` runners-up.

        Returns:
            a prediction for each text, in the same order.

        Raises:
            TypeError: a bare string or a table instead of a list, or something in it that is not a string.
            ValueError: ``top_k`` is below 1, or a text has half of a surrogate pair.
            UserError: the model's answers are not finite numbers.
        """
        texts = _checked(texts)
        if top_k < 1:
            raise ValueError(f"top_k = {top_k} must be at least 1")
        distinct = dict.fromkeys(texts)
        store = TokenStore.from_texts(distinct, self._tokenizer)
        (readable,) = np.nonzero(store.lengths)  # indices of the distinct texts that have tokens
        loader = inference_loader(store.take(readable), self._tokenizer, self._maxlen, self._batch_size)
        batches = logits_by_batch(
            self._model, loader, self._tokenizer.pad_token_id, self._device, self._precision
        )
        predictions = [NOTHING_TO_READ] * len(store)
        for index, logits in batches:
            for number, prediction in zip(readable[index], self._decide(logits, top_k), strict=True):
                predictions[number] = prediction
        prediction_of = dict(zip(distinct, predictions, strict=True))
        return [prediction_of[text] for text in texts]

    def _decide(self, logits: Tensor, top_k: int) -> list[Prediction]:
        """The predictions for logits (B, C)."""
        # A stable sort ranks equally probable classes by their ids, as argmax does.
        ranked, order = logits.sort(dim=1, descending=True, stable=True)
        confidences = (ranked / self._temperature).softmax(dim=1)[:, :top_k].tolist()
        predictions = []
        for numbers, row in zip(order[:, :top_k].tolist(), confidences, strict=True):
            best, *others = map(self._candidate, numbers, row)
            predictions.append(Prediction(*best, tuple(others)))
        return predictions

    def _candidate(self, number: int, confidence: float) -> Candidate:
        label, category = self._classes[number]
        return Candidate(label, category, confidence)


def _checked(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts must be a list of texts; of one text, classifier([text])[0]")
    if isinstance(texts, Mapping) or hasattr(texts, "columns"):  # iterating yields the names of its columns
        raise TypeError("texts must be a list of texts; of a table, one column")
    checked = list(texts)
    for place, text in enumerate(checked):
        if not isinstance(text, str):
            raise TypeError(f"texts[{place}] is {text!r}, which is not a text")
        if not text.isascii() and SURROGATE.search(text):
            raise ValueError(f"texts[{place}] is {text!r}, which has half of a surrogate pair, no character")
    return checked
