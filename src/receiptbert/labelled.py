"""The labelled texts for a given tokenizer."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from receiptbert.corpus import SPLIT, TEXT, read_corpus
from receiptbert.errors import UserError
from receiptbert.token_store import TokenStore, fingerprint
from receiptbert.tokenization import WordpieceTokenizer


def load_labelled(
    tokenized: Path, corpus: Path, split: str, tokenizer: WordpieceTokenizer
) -> tuple[TokenStore, npt.NDArray[np.int64]]:
    """The texts of ``split`` as ids of ``tokenizer``, and their classes, in the order of the corpus.

    Taken from the token store where it was made with this tokenizer; tokenized again from the CSV
    ``corpus`` where a model from elsewhere (``finetune.init``) brings a vocabulary of its own.
    """
    path = tokenized / f"{split}.safetensors"
    store = TokenStore.load(path)
    if store.labels is None:
        raise UserError(f"{path} has no labels; run `dvc repro -f pretokenize`")
    if store.vocabulary == fingerprint(tokenizer):
        return store, store.labels
    rows = read_corpus(corpus)
    return TokenStore.from_texts(rows.loc[rows[SPLIT] == split, TEXT], tokenizer), store.labels
