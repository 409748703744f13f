"""Predict classes."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from receiptbert.choices import PREDICTION_BATCH_SIZE
from receiptbert.datasets import InferenceDataset, Texts
from receiptbert.errors import TAKE_AGAIN, UserError
from receiptbert.flat_texts import padding_mask
from receiptbert.precision import autocast
from receiptbert.progress import track
from receiptbert.sampling import LengthGroupedBatchSampler
from receiptbert.tokenization import WordpieceTokenizer


def inference_loader(
    texts: Texts, tokenizer: WordpieceTokenizer, maxlen: int | None, batch_size: int = PREDICTION_BATCH_SIZE
) -> DataLoader[Tensor]:
    """Batches of ids (B, S) of texts of similar length; ``predict_logits`` restores their order."""
    dataset = InferenceDataset(texts, maxlen=maxlen, tokenizer=tokenizer)
    return DataLoader(
        dataset,
        batch_sampler=LengthGroupedBatchSampler(dataset.shown_lengths, batch_size, shuffle=False),
        collate_fn=torch.stack,  # the dataset pads
    )


def logits_by_batch(
    model: nn.Module,
    dataloader: DataLoader[Tensor],
    pad_token_id: int,
    device: torch.device,
    precision: str = "fp32",
) -> Iterator[tuple[list[int], Tensor]]:
    """The logits of each batch, without dropout.

    Args:
        dataloader: of padded ids (B, S), in any order; its dataset, batches and ``collate_fn`` are used.
        precision: fp32, bf16 or fp16, of the matrix products; see ``choose_precision``.

    Yields:
        the indices of the batch's texts in the dataset, and their logits (B, C), fp32, on ``device``.

    Raises:
        UserError: some logits are not finite.
    """
    # Drawn beforehand: a sampler that shuffles would give another order when asked which text is where.
    batches: list[list[int]] = list(dataloader.batch_sampler)  # type: ignore[arg-type]
    ordered = DataLoader(dataloader.dataset, batch_sampler=batches, collate_fn=dataloader.collate_fn)
    model.eval()
    for index, batch in zip(batches, ordered, strict=True):
        input_ids = batch.to(device)
        with torch.inference_mode(), autocast(precision, device):
            logits = model(input_ids, padding_mask(input_ids, pad_token_id)).float()
        if not logits.isfinite().all():
            raise UserError(f"the model's answers are not finite numbers; {_remedy(precision)}")
        yield index, logits


def _remedy(precision: str) -> str:
    if precision == "fp16":
        return "try precision fp32"
    return f"finetune it again, at a lower finetune.lr, if its training diverged; else {TAKE_AGAIN}"


def predict_logits(
    model: nn.Module, dataloader: DataLoader[Tensor], pad_token_id: int, device: torch.device
) -> npt.NDArray[np.float32]:
    """The logits of each text in the order of the dataset, shape (n, C); for no texts, (0, 0).

    The arguments are those of ``logits_by_batch``.

    Raises:
        UserError: see ``logits_by_batch``.
        ValueError: the dataloader leaves out texts.
    """
    number = len(dataloader.dataset)  # type: ignore[arg-type]
    predicted, logits = np.zeros(number, dtype=bool), np.empty((number, 0), dtype=np.float32)
    batches = logits_by_batch(model, dataloader, pad_token_id, device)
    for index, batch in track(batches, "predicting", len(dataloader)):
        if not logits.size:
            logits = np.empty((number, batch.shape[1]), dtype=np.float32)
        logits[index] = batch.cpu().numpy()
        predicted[index] = True
    if not predicted.all():
        raise ValueError(
            f"the dataloader has {predicted.sum()} of {number} texts; give it a sampler of all of them"
        )
    return logits
