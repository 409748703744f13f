"""The models to beat: linear support vector machines on TF-IDF, trained on the labelled lines alone."""

from typing import Any

import pandas as pd
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import LinearSVC

from receiptbert.linear_teacher import CHARACTERS, WORDS, tfidf
from receiptbert.metrics import f1
from receiptbert.splits import LABEL, SPLIT, TEXT, TRAIN, VAL

STRENGTHS = [0.1, 0.3, 1.0, 3.0, 10.0]
# The n-grams of the linear teacher, rare ones too: slower, and a little better.
EVERY = {"min_df": 1}
FEATURES: dict[str, list[dict[str, Any]]] = {
    "svm_word": [{"token_pattern": r"\w+", "sublinear_tf": True}],
    "svm_char": [CHARACTERS | EVERY],
    "svm_both": [CHARACTERS | EVERY, WORDS | EVERY],
}


def fit_svm(corpus: pd.DataFrame, features: str, seed: int) -> tuple[Pipeline, float]:
    """An SVM over ``FEATURES[features]``, its strength C chosen on val, and its weighted F1 there."""
    train, val = (corpus[corpus[SPLIT] == split] for split in (TRAIN, VAL))
    vectorizer = tfidf(*FEATURES[features])
    of_train, of_val = vectorizer.fit_transform(train[TEXT]), vectorizer.transform(val[TEXT])

    def fit(strength: float) -> tuple[float, LinearSVC]:
        svm = LinearSVC(C=strength, random_state=seed).fit(of_train, train[LABEL])
        return f1(val[LABEL], svm.predict(of_val), "weighted"), svm

    val_f1, svm = max(map(fit, STRENGTHS), key=lambda fitted: fitted[0])
    return make_pipeline(vectorizer, svm), val_f1


def megabytes(model: Pipeline) -> float:
    """Size of the coefficients and of the vocabulary's strings, as a file would hold them."""
    union, svm = model
    vectorizers = [vectorizer for _, vectorizer in union.transformer_list]
    strings = sum(len(term.encode()) for vectorizer in vectorizers for term in vectorizer.vocabulary_)
    weights = svm.coef_.nbytes + sum(vectorizer.idf_.nbytes for vectorizer in vectorizers)
    return float(weights + strings) / 1e6
