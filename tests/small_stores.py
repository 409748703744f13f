"""Token stores of a few texts."""

import numpy as np

from receiptbert.token_store import TokenStore


def store_of(rows: list[list[int]], labels: list[int] | None = None) -> TokenStore:
    return TokenStore(
        ids=np.array([i for row in rows for i in row], dtype=np.uint16),
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        labels=None if labels is None else np.array(labels, dtype=np.int64),
        tokenizer_fingerprint="v",
    )
