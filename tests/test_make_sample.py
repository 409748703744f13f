"""Tests of the generator of the sample corpus."""

import csv
import io
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest

import make_sample

DATA = Path(__file__).resolve().parent.parent / "data"
M_FORMS = 'forms: ["{n}м", "{n} м", "{n}м.", "{n}метр"]'
SIZES = {"unsupervised": 50_000, "train": 5_000, "val": 1_000, "test": 3_000}
Row = dict[str, str]


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_rows(path: Path) -> list[Row]:
    return list(csv.DictReader(io.StringIO(members(path)["data.csv"].decode("utf-8"), newline="")))


def small(path: Path, *options: str) -> list[Row]:
    sizes = ["--unlabelled", "300", "--train", "400", "--val", "7", "--test", "0"]
    make_sample.main([str(path), *sizes, *options])
    return read_rows(path)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read_rows(DATA / "sample.zip")


def test_committed_sample_is_what_the_generator_writes(tmp_path: Path) -> None:
    make_sample.main([str(tmp_path / "fresh.zip")])
    # The CSV bytes, not those of the archive: versions of zlib may pack them differently.
    assert members(tmp_path / "fresh.zip") == members(DATA / "sample.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["fresh.zip"]  # no temporary file is left
    assert (DATA / "sample.zip").stat().st_size < 2_000_000


def test_counts_and_labels(rows: list[Row]) -> None:
    assert Counter(row["split"] for row in rows) == SIZES
    for row in rows:
        assert (row["label"] == "") == (row["split"] == "unsupervised")
    assert {row["label"] for row in rows} - {""} == {str(label) for label in range(96)}
    names = members(DATA / "sample.zip")["categories.csv"].decode("utf-8").splitlines()
    assert names[0] == "label,name"
    assert [line.split(",", 1)[0] for line in names[1:]] == [str(label) for label in range(96)]


def test_every_text_occurs_once(rows: list[Row]) -> None:
    texts = {" ".join(row["text"].lower().split()) for row in rows}
    assert len(texts) == len(rows)
    assert "" not in texts


def test_classes_are_uneven_but_none_is_empty(rows: list[Row]) -> None:
    counts = Counter(row["label"] for row in rows if row["split"] == "train")
    assert len(counts) == 96
    assert min(counts.values()) >= 3
    assert 0.03 * 5_000 < max(counts.values()) < 0.06 * 5_000
    assert max(counts.values()) > 10 * min(counts.values())


def test_splits_are_mixed_and_alike(rows: list[Row]) -> None:
    assert {row["split"] for row in rows[:500]} == set(SIZES)
    lengths: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        lengths[row["split"]].append(len(row["text"]))
    means = [sum(values) / len(values) for values in lengths.values()]
    assert max(means) - min(means) < 1.5


def test_sizes_and_seed(tmp_path: Path) -> None:
    one = small(tmp_path / "one.zip", "--seed", "1")
    two = small(tmp_path / "two.zip", "--seed", "2")
    counts = Counter(row["split"] for row in one)
    assert counts == {"unsupervised": 300, "train": 400, "val": 7}
    train = Counter(row["label"] for row in one if row["split"] == "train")
    assert len(train) == 96
    assert min(train.values()) >= 3
    assert len({row["text"] for row in one} & {row["text"] for row in two}) < 60
    assert small(tmp_path / "again.zip", "--seed", "1") == one


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("units: [l, ml]", "units: [parsec]", "Молоко: units: an unknown kind"),
        (M_FORMS, "forms: 5", "units: m: forms: not a list of texts or empty"),
        (M_FORMS, "forms: [5]", "units: m: forms: not a list of texts or empty"),
        (M_FORMS, "forms: []", "units: m: forms: not a list of texts or empty"),
        ("nouns: [молоко,", "nouns: [7,", "Молоко: nouns: not a str or empty: 7"),
        ("nouns: [молоко,", "nouns: [молочко,", "Молоко: nouns: listed twice: 'молочко'"),
        ("name: Сыры", "name: Молоко", "names of categories: listed twice: 'Молоко'"),
        ("groups:", "groups: [", "while parsing"),
    ],
)
def test_broken_lexicon(
    old: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lexicon = tmp_path / "lexicon.yaml"
    text = (DATA / "lexicon.yaml").read_text(encoding="utf-8")
    assert old in text
    # Without the comments, so that the replacement falls on the content.
    content = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    lexicon.write_text(content.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        make_sample.main([str(tmp_path / "out.zip"), "--lexicon", str(lexicon)])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_no_name_for_the_archive(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_sample.main([name])
    assert "is no name of an archive" in capsys.readouterr().err
