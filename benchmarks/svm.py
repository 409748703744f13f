"""The model to beat: a linear SVM over character n-grams, trained on the labelled lines alone.

    python benchmarks/svm.py [--corpus ZIP] [--json OUT]

TF-IDF of 1- to 6-grams within words, LinearSVC, C chosen by weighted F1 on val; test is read once at the end.
"""

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import LinearSVC

from common import argument_parser, read_archive, write_result
from receiptbert.corpus import LABEL, SPLIT, TEST, TEXT, TRAIN, VAL

STRENGTHS = [0.1, 0.3, 1.0, 3.0]


def fit(texts: list[str], labels: list[str], strength: float) -> Pipeline:
    """An SVM of one regularization strength."""
    features = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 6), sublinear_tf=True, min_df=2)
    return make_pipeline(features, LinearSVC(C=strength)).fit(texts, labels)


def main() -> None:
    """The command line."""
    args = argument_parser(__doc__).parse_args()
    corpus = read_archive(args.corpus)
    rows = {split: corpus[corpus[SPLIT] == split] for split in (TRAIN, VAL, TEST)}
    texts = {split: part[TEXT].tolist() for split, part in rows.items()}
    labels = {split: part[LABEL].tolist() for split, part in rows.items()}

    def weighted_f1(model: Pipeline, split: str) -> float:
        return float(
            f1_score(labels[split], model.predict(texts[split]), average="weighted", zero_division=0)
        )

    models = {strength: fit(texts[TRAIN], labels[TRAIN], strength) for strength in STRENGTHS}
    on_val = {strength: weighted_f1(model, VAL) for strength, model in models.items()}
    best = max(STRENGTHS, key=on_val.__getitem__)
    result = {"C": best, "val_weighted_f1": on_val[best], "test_weighted_f1": weighted_f1(models[best], TEST)}
    for strength, score in on_val.items():
        print(f"C = {strength:<4}  weighted F1 on val {score:.4f}")
    print(f"chosen C = {best}: weighted F1 on test {result['test_weighted_f1']:.4f}")
    write_result(args.json, result)


if __name__ == "__main__":
    main()
