"""The token ids of many texts as two flat arrays, in one file."""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from receiptbert.errors import PRETOKENIZE_AGAIN, UserError
from receiptbert.progress import track
from receiptbert.tokenization import WordpieceTokenizer

IntArray = npt.NDArray[np.integer[Any]]

TEXTS_AT_ONCE = 1 << 17


def store_path(tokenized: Path, split: str) -> Path:
    """Where ``pretokenize`` puts the token ids of a split."""
    return tokenized / f"{split}.safetensors"


@dataclass(frozen=True)
class TokenStore:
    """Token ids of ``n`` texts, without special tokens.

    Attributes:
        ids: all ids one text after another, shape (tokens,).
        offsets: text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``; shape (n + 1,), int64.
        labels: class ids, shape (n,), int64; None where the texts are unlabelled.
        tokenizer_fingerprint: of the tokenizer that made the ids.
    """

    ids: IntArray
    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64] | None
    tokenizer_fingerprint: str

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        tokenizer: WordpieceTokenizer,
        labels: Iterable[int] | None = None,
        progress: str | None = None,
    ) -> "TokenStore":
        """Tokenize ``texts`` on all cores, each distinct word (see ``WordpieceTokenizer.words``) only once.

        Args:
            progress: what to call the work when reporting its progress; None to keep silent.
        """
        # A word that is looked up for the first time gets the next number.
        numbers: defaultdict[str, int] = defaultdict(count().__next__)
        words_per_text = array("q")  # filled while `split` is read

        def split() -> Iterator[list[str]]:
            for text in texts:
                words = tokenizer.words(text)
                words_per_text.append(len(words))
                yield words

        # No Python code runs per word.
        places = np.fromiter(map(numbers.__getitem__, chain.from_iterable(split())), np.int32)
        distinct: Iterable[str] = numbers
        if progress is not None:
            distinct = track(distinct, progress, len(numbers), "distinct words")
        store = cls._of_each(distinct, tokenizer).take(places)  # of the words of all texts in turn
        # A text begins where its first word does.
        return replace(
            store,
            offsets=store.offsets[_offsets(np.asarray(words_per_text))],
            labels=None if labels is None else np.fromiter(labels, dtype=np.int64),
        )

    @classmethod
    def _of_each(cls, texts: Iterable[str], tokenizer: WordpieceTokenizer) -> "TokenStore":
        # 16 bits suffice for every vocabulary in use, in half the memory.
        dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        ids = [np.zeros(0, dtype)]  # so that 0 texts, too, give arrays of the right type
        lengths = [np.zeros(0, np.int64)]
        for chunk_ids, chunk_lengths in tokenizer.encode_batch(texts):
            ids.append(chunk_ids.astype(dtype))
            lengths.append(chunk_lengths)
        return cls(
            ids=np.concatenate(ids),
            offsets=_offsets(np.concatenate(lengths)),
            labels=None,
            tokenizer_fingerprint=tokenizer.fingerprint,
        )

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, shape (n,)."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> IntArray:
        """Token ids of one text."""
        index = range(len(self))[index]  # negative indices and IndexError as in a list
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def take(self, index: npt.NDArray[Any]) -> "TokenStore":
        """The texts ``index`` (indices, or a mask of shape (n,)), in that order, with their labels."""
        if index.dtype == bool:
            if index.all():
                return self  # a copy of a large corpus would take memory for nothing
            index = np.flatnonzero(index)
        lengths = self.lengths[index]
        offsets = _offsets(lengths)
        ids = np.empty(offsets[-1], self.ids.dtype)
        for texts in _chunks(len(lengths)):
            # Where a token comes from: its new place, shifted by how far its text has moved.
            shifts = self.offsets[:-1][index[texts]] - offsets[texts]
            first, last = offsets[texts.start], offsets[texts.stop]
            ids[first:last] = self.ids[np.repeat(shifts, lengths[texts]) + np.arange(first, last)]
        return TokenStore(
            ids=ids,
            offsets=offsets,
            labels=None if self.labels is None else self.labels[index],
            tokenizer_fingerprint=self.tokenizer_fingerprint,
        )

    def followed_by(self, other: "TokenStore") -> "TokenStore":
        """These texts and then those of ``other``, without labels.

        Raises:
            ValueError: ``other`` is of another tokenizer.
        """
        if self.tokenizer_fingerprint != other.tokenizer_fingerprint:
            raise ValueError("the two stores are of different tokenizers")
        return TokenStore(
            ids=np.concatenate([self.ids, other.ids]),
            offsets=np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]]),
            labels=None,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
        )

    def sorted_by_length(self) -> "TokenStore":
        """The same texts, the shortest first, ties in their old order."""
        return self.take(np.argsort(self.lengths, kind="stable"))

    def held_out(self, count: int) -> npt.NDArray[np.bool_]:
        """A mask, shape (n,), of ``count`` texts to set apart, a tenth of all at most.

        Only texts that occur once are held out, so that they were truly never seen. The choice depends on
        the texts alone, not on their order.
        """
        hashes = self.hashes()
        distinct, occurrences = np.unique(hashes, return_counts=True)
        # They are sorted; the lowest hashes are as good as any drawn at random.
        return np.isin(hashes, distinct[occurrences == 1][: min(count, len(self) // 10)])

    def hashes(self) -> npt.NDArray[np.uint64]:
        """A hash of each text's ids, shape (n,): equal texts have equal hashes on every machine."""
        hashes = np.empty(len(self), np.uint64)
        for texts in _chunks(len(self)):
            offsets = self.offsets[texts.start : texts.stop + 1]
            ids = self.ids[offsets[0] : offsets[-1]].astype(np.uint64)
            offsets = offsets - offsets[0]
            # Positions count from 1: a token 0 at position 0 would mix to 0, as if it were not there.
            place = np.arange(1, len(ids) + 1) - np.repeat(offsets[:-1], np.diff(offsets))
            mixed = _mix(ids + (place.astype(np.uint64) << np.uint64(32)))
            # Sums modulo 2^64 between offsets; unlike np.add.reduceat they give an empty text a sum of 0.
            sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
            hashes[texts] = _mix(sums[offsets[1:]] - sums[offsets[:-1]])
        return hashes

    def save(self, path: Path) -> None:
        """Write one safetensors file; equal stores give equal bytes."""
        arrays = {"ids": self.ids, "offsets": self.offsets}
        if self.labels is not None:
            arrays["labels"] = self.labels
        # Not `save_file`: its files can be read by their owner alone, whatever the umask.
        path.write_bytes(save(arrays, metadata={"tokenizer": self.tokenizer_fingerprint}))

    @classmethod
    def load(cls, path: Path, tokenizer: WordpieceTokenizer | None = None) -> "TokenStore":
        """Read what ``save`` wrote.

        Args:
            tokenizer: whose ids the store must hold, if that matters.

        Raises:
            UserError: no such file, one that ``save`` did not write, or ids of another tokenizer.
        """
        try:
            path.open("rb").close()  # safetensors would not say that a file may not be read
            with safe_open(path, framework="numpy") as file:
                store = cls(
                    ids=file.get_tensor("ids"),
                    offsets=file.get_tensor("offsets"),
                    labels=file.get_tensor("labels") if "labels" in file.keys() else None,  # noqa: SIM118
                    tokenizer_fingerprint=file.metadata()["tokenizer"],
                )
        except FileNotFoundError:
            raise UserError(f"{path} not found; {PRETOKENIZE_AGAIN}") from None
        except (SafetensorError, KeyError, TypeError) as error:
            reason = str(error)
        else:
            reason = store._fault()
        if reason:
            raise UserError(f"{path} is not a token store ({reason}); {PRETOKENIZE_AGAIN}")
        if tokenizer is not None and store.tokenizer_fingerprint != tokenizer.fingerprint:
            raise UserError(f"{path} was made with another tokenizer; {PRETOKENIZE_AGAIN}")
        return store

    def _fault(self) -> str:
        """What is wrong with arrays that come from a file; empty if nothing is."""
        ids, offsets, labels = self.ids, self.offsets, self.labels
        if ids.ndim != 1 or ids.dtype not in (np.uint16, np.uint32):
            return f"ids are {ids.dtype} of shape {ids.shape}"
        if offsets.ndim != 1 or offsets.dtype != np.int64 or not len(offsets):
            return f"offsets are {offsets.dtype} of shape {offsets.shape}"
        if offsets[0] != 0 or offsets[-1] != len(ids) or (offsets[1:] < offsets[:-1]).any():
            return "offsets do not fit the ids"
        if labels is not None and (labels.shape != (len(self),) or labels.dtype != np.int64):
            return f"labels are {labels.dtype} of shape {labels.shape}, for {len(self)} texts"
        return ""


def _chunks(count: int) -> Iterator[slice]:
    """``count`` texts in parts: what is computed for each token takes many times the memory of the ids."""
    for start in range(0, count, TEXTS_AT_ONCE):
        yield slice(start, min(start + TEXTS_AT_ONCE, count))


def _offsets(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele et al. 2014; its constants are Stafford's Mix13, 2011): each input
    bit flips half the output bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
