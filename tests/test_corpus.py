from pathlib import Path

import pytest

from receiptbert.corpus import (
    describe,
    label_list,
    label_names,
    majority_class,
    read_categories,
    read_corpus,
)
from receiptbert.errors import UserError

GOOD = "text,label,split\nmilk,1,train\nrye bread,2,train\ntea,2,val\nsoap,1,test\nkvass,,unsupervised\n"


def corpus_file(folder: Path, content: str | bytes) -> Path:
    path = folder / "data.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_reads_texts_that_look_like_missing_values(tmp_path: Path) -> None:
    corpus = read_corpus(corpus_file(tmp_path, GOOD + "NA,,unsupervised\nnull,1,train\n,1,train\n"))
    assert corpus["text"].tolist()[-3:] == ["NA", "null", ""]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("\ufeff" + GOOD, id="byte-order mark"),
        pytest.param(GOOD.replace("\n", "\r\n"), id="Windows line ends"),
        pytest.param(GOOD.replace("1,", "1.0,").replace("2,", "2.00,"), id="labels of a column with gaps"),
        pytest.param(GOOD.replace("1,", " 1 ,"), id="spaces around labels"),
        pytest.param(GOOD.replace("kvass,,", "kvass,nan,"), id="a label where there is none"),
        pytest.param(
            "\n".join(f"{line},x{i}" for i, line in enumerate(GOOD.splitlines())), id="a column more"
        ),
        pytest.param(
            "\n".join(",".join(reversed(line.split(","))) for line in GOOD.splitlines()), id="another order"
        ),
    ],
)
def test_reads_the_same_from_other_habits_of_writing(tmp_path: Path, content: str) -> None:
    expected = read_corpus(corpus_file(tmp_path, GOOD))
    assert read_corpus(corpus_file(tmp_path, content)).equals(expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a CSV"),
        ("text,label,split\n", "a header and no rows"),
        ("text,split\nmilk,train\n", "lacks the column label"),
        (GOOD.replace(",", ";"), "lacks the column text"),
        (GOOD.encode("cp1251") + "чай,1,train\n".encode("cp1251"), "is not UTF-8"),
        (GOOD + "milk,1,training\n", "row 7: split 'training' must be one of"),
        (GOOD + "milk,,train\nmilk,,val\n", r"row 7: label '' is needed .* \(and 1 more rows\)"),
        (GOOD.replace("test", "val"), "no rows with split=test"),
        (GOOD + 'a "b,1,train\n"c,1,train\n', "is not a CSV"),
        (GOOD + "a,b,1,train\n", "is not a CSV.*line 7"),
        ("split,text,label\ntrain,milk,1\ntrain,eggs, 10,1\n", "is not a CSV.*line 3"),
        ("text,label,split\na,1,train,\nb,2,val,\n", "more fields than the header"),
        (GOOD.replace("text,", "text,text,"), "two columns named text"),
        (GOOD.replace("bread,2", "bread,1"), "train rows of one label only"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_corpus(corpus_file(tmp_path, content))
    assert "data.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_are_ordered_as_numbers_or_else_as_text(tmp_path: Path) -> None:
    numbers = read_corpus(corpus_file(tmp_path, GOOD + "a,10,train\nb,-1,train\nc,9,test\n"))
    assert label_list(numbers) == ["-1", "1", "2", "9", "10"]
    words = read_corpus(corpus_file(tmp_path, GOOD + "a,10,train\nb,dairy,train\n"))
    assert label_list(words) == ["1", "10", "2", "dairy"]


def test_names_are_distinct_and_fall_back_to_labels(tmp_path: Path) -> None:
    (tmp_path / "categories.csv").write_text("label,name\n1,Tea\n2,Tea\n3,Soap\n")
    categories = read_categories(tmp_path / "categories.csv")
    assert label_names(["1", "2", "3"], {"1": "A", "2": "A", "3": "A (1)"}) == [
        "A (1) (1)",
        "A (2)",
        "A (1) (3)",
    ]
    assert label_names(["1", "2", "3", "4"], categories) == ["Tea (1)", "Tea (2)", "Soap", "4"]
    assert read_categories(tmp_path / "none.csv") == {}


def test_category_labels_are_read_as_the_corpus_labels_are(tmp_path: Path) -> None:
    path = tmp_path / "categories.csv"
    path.write_text("label,name\n12.0,Tea\n 3 ,Soap\n")
    assert read_categories(path) == {"12": "Tea", "3": "Soap"}
    path.write_text("label,name\n12.0,Tea\n12,Soap\n")
    with pytest.raises(UserError, match="row 3: label '12' is named twice"):
        read_categories(path)


def test_description_counts_what_goes_wrong_silently(tmp_path: Path) -> None:
    extra = "MILK,1,test\n tea ,1,unsupervised\nsoda,7,test\nrye  bread,1,train\n,1,train\n"
    described = describe(read_corpus(corpus_file(tmp_path, GOOD + extra)))
    assert described["rows"] == {"train": 4, "val": 1, "test": 3, "unsupervised": 2}
    assert described["distinct_texts"]["train"] == 3
    assert described["blank_texts"] == 1
    assert described["texts_in_several_splits"] == 2  # milk and tea
    assert described["test_rows_seen_elsewhere"] == 1  # MILK
    assert described["classes"] == {"train": 2, "val": 1, "test": 2}
    assert described["classes_absent_from_train"] == 1  # 7
    assert described["train_rows_per_class"] == {"largest": 3, "median": 2.0, "smallest": 1}
    assert described["largest_class_share"] == 0.75


def test_majority_class_is_the_id_of_the_most_frequent_label_of_train(tmp_path: Path) -> None:
    corpus = read_corpus(corpus_file(tmp_path, GOOD + "a,10,train\nb,10,train\nc,1,test\nd,1,test\n"))
    assert majority_class(corpus) == 2
