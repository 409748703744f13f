"""Predict classes, and score predictions while training."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.utils.data import DataLoader

from receiptbert.datasets import InferenceDataset, Texts
from receiptbert.progress import track
from receiptbert.sampling import LengthGroupedBatchSampler
from receiptbert.tokenization import WordpieceTokenizer

if TYPE_CHECKING:
    from receiptbert.training import FinetuneTrainer

# Texts of average length: enough to fill the processor, few enough to stay in its cache.
BATCH_SIZE = 128


def padding_mask(input_ids: Tensor, pad_token_id: int) -> Tensor | None:
    """(B, S) ids -> (B, S) mask, 1 for tokens and 0 for padding; None if nothing is padded.

    Attention without a mask is faster, and batches of texts of like length often need none. A GPU would have
    to finish its work before we know, so that there the mask is always given.
    """
    is_token = input_ids != pad_token_id
    return None if input_ids.device.type == "cpu" and bool(is_token.all()) else is_token.long()


def inference_loader(texts: Texts, tokenizer: WordpieceTokenizer, maxlen: int | None) -> DataLoader[Tensor]:
    """Batches of ids (B, S) of texts of like length; ``predict`` restores the order of ``texts``."""
    dataset = InferenceDataset(texts, maxlen=maxlen, tokenizer=tokenizer)
    lengths = dataset.lengths.clamp(max=maxlen)
    return DataLoader(
        dataset,
        batch_sampler=LengthGroupedBatchSampler(lengths, BATCH_SIZE, shuffle=False),
        collate_fn=torch.stack,  # the dataset pads
    )


def predict(
    model: nn.Module, dataloader: DataLoader[Tensor], pad_token_id: int, device: torch.device
) -> npt.NDArray[np.int64]:
    """The most probable class of each text, without dropout.

    Args:
        dataloader: of padded ids (B, S). The texts may come in any order that its ``batch_sampler`` repeats.

    Returns:
        classes in the order of the dataset, shape (n,).
    """
    model.eval()
    predictions = np.empty(len(dataloader.dataset), dtype=np.int64)  # type: ignore[arg-type]
    batches = track(dataloader, "predicting", len(dataloader))
    with torch.inference_mode():
        for index, batch in zip(dataloader.batch_sampler, batches, strict=True):  # type: ignore[arg-type]
            input_ids = batch.to(device)
            logits = model(input_ids, padding_mask(input_ids, pad_token_id))  # (B, C)
            predictions[index] = logits.argmax(dim=-1).cpu().numpy()
    return predictions


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
