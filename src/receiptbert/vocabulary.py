"""Learn a WordPiece vocabulary, the same in every run."""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import BertWordPieceTokenizer

from receiptbert.errors import UserError
from receiptbert.files import naming
from receiptbert.progress import in_terminal

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CONTINUATION = "##"
# As in the reference trainer: a thousand characters are kept; a word with a rarer one is [UNK] as a whole.
MAX_ALPHABET = 1000
# The trainer counts words, wherever they stand; with one text in each line it takes half as long again.
TEXTS_PER_LINE = 100


def learn_vocabulary(
    new_trainer: Callable[[], BertWordPieceTokenizer],
    corpus: Iterable[str],
    corpus_path: Path,
    vocab_size: int,
    min_frequency: int,
) -> list[str]:
    """The vocabulary of ``corpus`` in the order of its ids.

    Args:
        new_trainer: makes one, whose normalization is used.
        corpus: raw texts, read once.
        corpus_path: where to put the texts while training.
        vocab_size: entries wanted, special tokens included.
        min_frequency: a pair of pieces seen less often is not merged.

    Raises:
        UserError: the characters alone need more entries.
    """
    try:
        words = _write_words(corpus, corpus_path)
        return _train(new_trainer, corpus_path, words, vocab_size, min_frequency)
    finally:
        corpus_path.unlink(missing_ok=True)


def _write_words(texts: Iterable[str], path: Path) -> Counter[str]:
    """Write the words of the texts, those of ``TEXTS_PER_LINE`` in a line; return how often each occurs."""
    counts: Counter[str] = Counter()
    iterator = iter(texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("w", encoding="utf-8") as file:
        while some := list(islice(iterator, TEXTS_PER_LINE)):
            words = " ".join(some).split()
            counts.update(words)
            file.write(" ".join(words) + "\n")
    return counts


def _train(
    new_trainer: Callable[[], BertWordPieceTokenizer],
    corpus_path: Path,
    words: Counter[str],
    vocab_size: int,
    min_frequency: int,
) -> list[str]:
    """The vocabulary in the order of its ids, the same on every run.

    The library merges the most frequent pair of pieces, as BPE does (Sennrich et al. 2016), whereas
    WordPiece as published merges the pair that makes the texts likeliest (Schuster and Nakajima 2012).

    Left alone, the trainer numbers the continuation characters (``##а``) in the order in which a hash map
    yields the words, and breaks ties between equally frequent pairs by those numbers, so that every run
    gives a different vocabulary. Numbers assigned beforehand are kept: a first training, which may merge
    nothing and needs each word only once, finds all such characters; the second gets them, sorted, as if
    they were special tokens.
    """
    alphabet = _alphabet(new_trainer(), words)
    settings: dict[str, Any] = {
        "min_frequency": min_frequency,
        "limit_alphabet": len(alphabet),
        "initial_alphabet": alphabet,
    }
    trainer = new_trainer()
    trainer.train_from_iterator(
        words, vocab_size=0, special_tokens=SPECIAL_TOKENS, show_progress=False, **settings
    )
    continuations = sorted(token for token in trainer.get_vocab() if token.startswith(CONTINUATION))
    # A new one, since a trained one would find its special tokens in texts that spell them.
    trainer = new_trainer()
    trainer.train(
        str(corpus_path),
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS + continuations,
        # Without a terminal its progress bar is nothing but empty lines.
        show_progress=in_terminal(),
        **settings,
    )
    vocabulary = trainer.get_vocab()
    if len(vocabulary) > vocab_size:
        raise UserError(
            f"tokenizer.vocab_size = {vocab_size} is too small: the characters of the corpus alone "
            f"need {len(vocabulary)} entries"
        )
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _alphabet(trainer: BertWordPieceTokenizer, words: Counter[str]) -> list[str]:
    """The most frequent characters after normalization, ties broken by code point (not by a hash map)."""
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    counts: Counter[str] = Counter()
    for character, count in characters.items():
        for normalized in trainer.normalize(character):
            counts[normalized] += count
    by_frequency = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    return sorted(by_frequency[:MAX_ALPHABET])
