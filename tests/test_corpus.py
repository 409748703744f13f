from pathlib import Path

import pandas as pd
import pytest

from receiptbert.corpus import (
    label_list,
    label_names,
    read_categories,
    read_corpus,
    strings,
)
from receiptbert.corpus_report import describe
from receiptbert.equal_texts import BLANK, fold, number_texts
from receiptbert.errors import UserError
from receiptbert.tokenization import WordpieceTokenizer
from tests.projects import CSV


def corpus_file(folder: Path, content: str | bytes) -> Path:
    path = folder / "data.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_reads_texts_that_look_like_missing_values(tmp_path: Path) -> None:
    corpus = read_corpus(corpus_file(tmp_path, CSV + "NA,,unsupervised\nnull,1,train\n,1,train\n"))
    assert corpus["text"].tolist()[-3:] == ["NA", "null", ""]


def test_reads_a_line_of_a_text_that_is_the_name_of_a_split(tmp_path: Path) -> None:
    rows = '"set\ntest",1,train\n"val",2,train\n"a, train",2,train\n"train\n",1,train\n'
    corpus = read_corpus(corpus_file(tmp_path, CSV + rows))
    assert corpus["text"].tolist()[-4:] == ["set\ntest", "val", "a, train", "train\n"]


def test_reads_the_longest_text_that_is_allowed(tmp_path: Path) -> None:
    corpus = read_corpus(corpus_file(tmp_path, CSV.replace("kvass", "x" * 10_000)))
    assert corpus["text"].iloc[-1] == "x" * 10_000


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("\ufeff" + CSV, id="byte-order mark"),
        pytest.param(CSV.replace("\n", "\r\n"), id="Windows line ends"),
        pytest.param(CSV.replace("1,", "1.0,").replace("2,", "2.00,"), id="labels of a column with gaps"),
        pytest.param(CSV.replace("1,", " 1 ,"), id="spaces around labels"),
        pytest.param(CSV.replace("train", " train "), id="spaces around splits"),
        pytest.param(CSV.replace("kvass,,", "kvass,nan,"), id="a label where there is none"),
        pytest.param(
            "\n".join(f"{line},x{i}" for i, line in enumerate(CSV.splitlines())), id="a column more"
        ),
        pytest.param(
            "\n".join(",".join(reversed(line.split(","))) for line in CSV.splitlines()), id="another order"
        ),
    ],
)
def test_reads_the_same_from_other_habits_of_writing(tmp_path: Path, content: str) -> None:
    expected = read_corpus(corpus_file(tmp_path, CSV))
    assert read_corpus(corpus_file(tmp_path, content)).equals(expected)


def test_strings_are_all_of_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receiptbert.corpus.ROWS_AT_ONCE", 3)
    for count in range(8):
        column = pd.Series([f"чай {i}" for i in range(count)], dtype=str)[::-1]
        assert list(strings(column)) == column.tolist()


def test_labels_are_ordered_as_numbers_or_else_as_text(tmp_path: Path) -> None:
    numbers = read_corpus(corpus_file(tmp_path, CSV + "a,10,train\nb,-1,train\nc,9,test\n"))
    assert label_list(numbers) == ["-1", "1", "2", "9", "10"]
    long = read_corpus(corpus_file(tmp_path, CSV.replace("1,", f"{9 * 10**18},").replace("2,", f"{10**19},")))
    assert label_list(long) == [str(9 * 10**18), str(10**19)]
    words = read_corpus(corpus_file(tmp_path, CSV.replace("1,", "tea,").replace("2,", "10 teas,")))
    assert label_list(words) == ["10 teas", "tea"]


def test_names_are_distinct_and_fall_back_to_labels(tmp_path: Path) -> None:
    (tmp_path / "categories.csv").write_text("label,name\n1,Tea\n2,Tea\n3,Soap\n")
    categories = read_categories(tmp_path / "categories.csv")
    assert label_names(["1", "2", "3"], {"1": "A", "2": "A", "3": "A (1)"}) == [
        "A (1) (1)",
        "A (2)",
        "A (1) (3)",
    ]
    assert label_names(["1", "2", "3", "4"], categories) == ["Tea (1)", "Tea (2)", "Soap", "4"]
    assert label_names(["1", "2"], {"1": "", "2": "Tea"}) == ["1", "Tea"]
    assert read_categories(tmp_path / "none.csv") == {}


def test_category_labels_are_read_as_the_corpus_labels_are(tmp_path: Path) -> None:
    path = tmp_path / "categories.csv"
    path.write_text("label,name\n12.0, Tea \n 3 ,Soap\n4, \n")
    assert read_categories(path) == {"12": "Tea", "3": "Soap", "4": ""}
    path.write_text("label,name\n12.0,Tea\n12,Soap\n")
    with pytest.raises(UserError, match="row 3, column label: '12' is named twice"):
        read_categories(path)


def test_empty_rows_of_a_spreadsheet_are_no_rows(tmp_path: Path) -> None:
    plain = read_corpus(corpus_file(tmp_path, CSV))
    filled = CSV.replace("\n", "\n,,\n", 2) + ",,\n,,\n"
    pd.testing.assert_frame_equal(read_corpus(corpus_file(tmp_path, filled)).reset_index(drop=True), plain)
    (tmp_path / "categories.csv").write_text("label,name\n1,Dairy\n,\n,\n")
    assert read_categories(tmp_path / "categories.csv") == {"1": "Dairy"}


def test_description_counts_what_goes_wrong_silently(tmp_path: Path) -> None:
    extra = "MILK,1,test\n tea ,1,unsupervised\nsoda,7,test\nrye  bread,1,train\n,1,train\n ,2,test\n"
    extra += "rum,9,train\n"
    corpus = read_corpus(corpus_file(tmp_path, CSV + extra))
    described = describe(corpus, number_texts(corpus["text"]))
    assert described["rows"] == {"train": 5, "val": 1, "test": 4, "unsupervised": 2}
    assert described["distinct_texts"]["train"] == 4
    assert described["blank_texts"] == 2
    assert described["texts_in_several_splits"] == 2  # milk and tea; blank is no text
    assert described["texts_with_several_labels"] == 1  # rye bread
    assert described["test_rows_seen_elsewhere"] == 1  # MILK
    assert described["unsupervised_rows_with_label"] == 1  # tea
    assert described["classes"] == {"train": 3, "val": 1, "test": 3}
    assert described["classes_absent_from_train"] == 1  # 7
    assert described["train_rows_per_class"] == {"largest": 3, "median": 1.0, "smallest": 1}
    assert described["largest_class_share"] == 0.6


def test_texts_alike_to_the_tokenizer_are_one_text(tokenizer: WordpieceTokenizer) -> None:
    salmon = ["СЁМГА  С/С", "семга с / с", "Се\u0308мга с/ с\u00a0", "сем\u00adга\u200b с/с\0"]
    texts = [*salmon, "CAFÉ Й", "cafe и", "茶葉 3,2%", "茶 葉3 , 2 %", "İ", "ẞ"]
    backend = tokenizer._backend

    def words(text: str) -> str:
        cut = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
        return " ".join(word for word, _ in cut)

    folded = fold(pd.Series(texts))
    assert folded.tolist() == ["семга с / с"] * 4 + ["cafe и"] * 2 + ["茶 葉 3 , 2 %"] * 2 + ["i", "ß"]
    assert folded.tolist() == [words(text) for text in texts]


def test_texts_are_numbered_by_what_is_one_text_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receiptbert.equal_texts.ROWS_AT_ONCE", 2)
    texts = pd.Series(["ЧАЙ", " ", "сыр", "чай", "", "Сыр "], index=range(3, 9))
    numbers = number_texts(texts)
    assert numbers.tolist() == [0, BLANK, 2, 0, BLANK, 2]
    assert numbers.index.equals(texts.index)


def test_a_table_that_pandas_has_no_memory_for_is_no_bad_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise pd.errors.ParserError("Error tokenizing data. C error: out of memory")

    monkeypatch.setattr(pd, "read_csv", fail)
    with pytest.raises(MemoryError):
        read_corpus(corpus_file(tmp_path, CSV))
