"""Which texts are one text to the model, because its tokenizer makes the same of them; which of them leak."""

import pandas as pd
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from receiptbert.corpus import ROWS_AT_ONCE
from receiptbert.splits import SPLIT, TEST, TRAIN, UNSUPERVISED, VAL

BLANK = -1  # the number of texts without anything to read


def held_out_too(corpus: pd.DataFrame, texts: "pd.Series[int]") -> "pd.Series[bool]":
    """Which rows have a text that is held out from their split; ``texts`` are numbers of ``number_texts``.

    From train and unsupervised, texts of val and test: a model trained on them has seen what is to judge it.
    From val, texts of test: what is chosen on val would have been chosen on test.
    """
    split = corpus[SPLIT]

    def has_text_of(*judges: str) -> "pd.Series[bool]":
        return texts.isin(texts[split.isin(judges) & (texts != BLANK)].unique())

    learned = split.isin([TRAIN, UNSUPERVISED])
    return (learned & has_text_of(VAL, TEST)) | ((split == VAL) & has_text_of(TEST))


def number_texts(texts: "pd.Series[str]") -> "pd.Series[int]":
    """A number from 0 for each text, the same for texts that are equal once ``fold`` has changed them, or
    ``BLANK``. Numbers take less memory than the folded texts of millions of rows."""
    parts = [fold(texts.iloc[start : start + ROWS_AT_ONCE]) for start in range(0, len(texts), ROWS_AT_ONCE)]
    folded = pd.concat(parts)
    numbers = pd.Series(pd.factorize(folded)[0], index=texts.index)
    return numbers.mask(folded == "", BLANK)


def fold(texts: "pd.Series[str]") -> "pd.Series[str]":
    """Texts as the words that the tokenizer cuts into pieces, a space between them: in lower case, without
    accents (``ё`` is ``е``) and invisible characters, each punctuation mark a word. Texts that are equal
    then are one text to the model."""
    return texts.map(lambda text: " ".join(text.translate(PLAIN).split()))


NORMALIZER, PRE_TOKENIZER = BertNormalizer(), BertPreTokenizer()


class _Plain(dict[int, str]):
    """What ``fold`` makes of each character, by its code point; each computed once, as corpora have few."""

    def __missing__(self, code: int) -> str:
        # Tested between two letters, which a punctuation mark separates and a letter joins.
        words = PRE_TOKENIZER.pre_tokenize_str(f"a{NORMALIZER.normalize_str(chr(code))}a")
        self[code] = plain = " ".join(word for word, _ in words)[1:-1]
        return plain


PLAIN = _Plain()
