"""Predict classes, and score predictions while training."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from receiptbert.datasets import InferenceDataset, Texts
from receiptbert.progress import track
from receiptbert.tokenization import WordpieceTokenizer

if TYPE_CHECKING:
    from receiptbert.training import FinetuneTrainer

BATCH_SIZE = 128


def padding_mask(input_ids: Tensor, pad_token_id: int) -> Tensor | None:
    """(B, S) ids -> (B, S) mask, 1 for tokens and 0 for padding; None if nothing is padded.

    Attention without a mask is faster, and batches of texts of like length often need none.
    """
    is_token = input_ids != pad_token_id
    return None if bool(is_token.all()) else is_token.long()


def inference_loader(texts: Texts, tokenizer: WordpieceTokenizer, maxlen: int | None) -> DataLoader[Tensor]:
    """Batches of padded ids (B, S), in the order of ``texts``."""
    return DataLoader(
        InferenceDataset(texts, maxlen=maxlen, tokenizer=tokenizer),
        batch_size=BATCH_SIZE,
        shuffle=False,
        collate_fn=lambda batch: pad_sequence(batch, batch_first=True, padding_value=tokenizer.pad_token_id),
    )


def predict(
    model: nn.Module, dataloader: DataLoader[Tensor], pad_token_id: int, device: torch.device
) -> npt.NDArray[np.int64]:
    """The most probable class of each text, shape (n,), without dropout."""
    model.eval()
    predictions = []
    with torch.inference_mode():
        for batch in track(dataloader, "predicting", len(dataloader)):
            input_ids = batch.to(device)
            logits = model(input_ids, padding_mask(input_ids, pad_token_id))  # (B, C)
            predictions.append(logits.argmax(dim=-1).cpu().numpy())
    return np.concatenate(predictions)


def make_scorer(
    texts: Texts,
    targets: Sequence[int] | npt.NDArray[np.int64],
    tokenizer: WordpieceTokenizer,
    maxlen: int | None,
) -> Callable[["FinetuneTrainer"], tuple[str, float]]:
    """A function that gives the name and the value of the weighted F1 of a trainer's model on ``texts``."""
    loader = inference_loader(texts, tokenizer, maxlen)

    def get_score(trainer: "FinetuneTrainer") -> tuple[str, float]:
        return "f1", float(f1_score(targets, trainer.predict(loader), average="weighted", zero_division=0))

    return get_score
