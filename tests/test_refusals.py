"""Bad inputs, each with the line that a stage must end with.

A row of the tables: what is bad, the bad thing, and a regular expression for the whole line, where `…` stands
for anything. Nothing bad may leave output behind.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from receiptbert import archive
from tests.conftest import STAGES, make_zip, matches, refusal, run_here, set_params

CSV = "text,label,split\nmilk,1,train\nrye bread,2,train\ntea,2,val\nsoap,1,test\nkvass,,unsupervised\n"


# --- Archives, in the stage unzip ---


def damaged(path: Path) -> None:
    content = bytearray(make_zip(path, {"data.csv": CSV * 1000}).read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)


def encrypted(path: Path) -> None:
    content = bytearray(make_zip(path, {"data.csv": CSV}).read_bytes())
    content[6] |= 1  # the flag in the local header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the central directory
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(make_zip(path, {"data.csv": CSV * 1000}).read_bytes()[:-40])


def truncated_and_not_compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("data.csv", CSV)
    path.write_bytes(path.read_bytes()[:-40])


def unknown_compression(path: Path) -> None:
    content = bytearray(make_zip(path, {"data.csv": CSV}).read_bytes())
    content[8] = content[content.index(b"PK\x01\x02") + 10] = 97
    path.write_bytes(content)


def of_a_newer_version(path: Path) -> None:
    content = bytearray(make_zip(path, {"data.csv": CSV}).read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99
    path.write_bytes(content)


def of(*names: str, content: str = CSV) -> Callable[[Path], Any]:
    """An archive with these members."""
    return lambda path: make_zip(path, dict.fromkeys(names, content))


def bytes_of(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


OUTSIDE = "points outside the archive; create it again"
WHOLE = "is not a complete zip archive"
ARCHIVES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("missing", lambda path: None, "in.zip not found; set data.archive to a zip with your CSV"),  # noqa: ARG005
    ("a folder", Path.mkdir, "in.zip is a folder; set data.archive to a zip with your CSV"),
    ("empty file", bytes_of(b""), f"in.zip {WHOLE} (File is not a zip file); make or download it again"),
    (
        "the CSV itself",
        bytes_of(CSV.encode()),
        f"in.zip {WHOLE} (…); it seems to be the CSV itself; put the CSV …",
    ),
    (
        "the CSV itself, of Excel",
        bytes_of(b"\xef\xbb\xbf" + CSV.replace("text,", '"text";').encode()),
        f"in.zip {WHOLE} (…); it seems to be the CSV itself; put the CSV …",
    ),
    ("Parquet", bytes_of(b"PAR1\x15\x04"), f"in.zip {WHOLE} (…); it seems to be Parquet; put the CSV …"),
    (
        "gzip",
        bytes_of(b"\x1f\x8b\x08\x00"),
        f"in.zip {WHOLE} (…); it seems to be gzip; put the CSV into a zip",
    ),
    (
        "7z",
        bytes_of(b"7z\xbc\xaf\x27\x1c\x00"),
        f"in.zip {WHOLE} (…); it seems to be 7z; put the CSV into a zip",
    ),
    ("truncated", truncated, f"in.zip {WHOLE} (File is not a zip file); make or download it again"),
    ("truncated, not compressed", truncated_and_not_compressed, f"in.zip {WHOLE} (…); make or download …"),
    ("a byte changed", damaged, f"in.zip {WHOLE} (…); make or download it again"),
    ("encrypted", encrypted, "in.zip: data.csv is encrypted; make an archive without a password"),
    (
        "unknown compression",
        unknown_compression,
        "in.zip: data.csv is not compressed by plain deflate; create it again",
    ),
    (
        "a newer version",
        of_a_newer_version,
        "in.zip: zip file version 9.9; create it again with plain deflate",
    ),
    ("no members", of(), "in.zip holds no CSV; put one CSV with the columns text,label,split into it"),
    ("nested", of("inner.zip"), "in.zip holds no CSV but inner.zip, which is not unpacked; put one CSV …"),
    (
        "a workbook",
        of("data.xlsx"),
        "in.zip holds no CSV but data.xlsx, which is not unpacked; put one CSV …",
    ),
    ("two CSVs", of("a.csv", "b.csv"), "in.zip holds 2 data CSVs (a.csv, b.csv); leave one"),
    (
        "many CSVs",
        of(*map("{}.csv".format, range(9))),
        "in.zip holds 9 data CSVs (0.csv, 1.csv, 2.csv, ...); …",
    ),
    (
        "two categories.csv",
        of("x.csv", "a/categories.csv", "categories.csv"),
        "in.zip holds 2 categories.csv (…); …",
    ),
    ("only categories.csv", of("categories.csv"), "in.zip holds no CSV; put one CSV …"),
    (
        "huge ratio",
        of("a.csv", content="0" * 9_000_000),
        "in.zip: a.csv expands to more than 1,…; the limits are …",
    ),
    ("a path upwards", of("../evil.csv"), f"in.zip: ../evil.csv {OUTSIDE}"),
    ("a path upwards, of Windows", of("..\\evil.csv"), f"in.zip: …evil.csv {OUTSIDE}"),
    ("an absolute path", of("/evil.csv"), f"in.zip: /evil.csv {OUTSIDE}"),
    ("a path down and up", of("a/../../evil.csv"), f"in.zip: a/../../evil.csv {OUTSIDE}"),
    (
        "a line break in a name",
        of("a\nb.csv", "c.csv"),
        r"in.zip holds 2 data CSVs (a\nb.csv, c.csv); leave one",
    ),
]


@pytest.mark.parametrize(("make", "expected"), [pytest.param(*row[1:], id=row[0]) for row in ARCHIVES])
def test_archives(bare_project: Path, make: Callable[[Path], Any], expected: str) -> None:
    make(bare_project / "in.zip")
    before = sorted(bare_project.rglob("*"))
    line = refusal(STAGES["unzip"], bare_project)
    assert matches(f"unzip: error: {expected}", line), line
    assert [path for path in bare_project.rglob("*") if path not in before] in ([], [bare_project / "data"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("receipts.csv", f"receipts.csv {WHOLE} (…); it seems to be the CSV itself; put the CSV into a zip"),
        ("receipts.csv/in.zip", "receipts.csv/in.zip not found; set data.archive to a zip with your CSV"),
    ],
)
def test_other_names_of_archives(bare_project: Path, name: str, expected: str) -> None:
    (bare_project / "receipts.csv").write_bytes(CSV.encode("utf-16"))
    set_params(bare_project, {"data.archive": name})
    line = refusal(STAGES["unzip"], bare_project)
    assert matches(f"unzip: error: {expected}", line), line


def test_size_is_capped_by_what_comes_out(bare_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    make_zip(bare_project / "in.zip", {"a.csv": CSV * 1000})
    assert "in.zip: a.csv expands to more than 1,000 bytes" in refusal(STAGES["unzip"], bare_project)


# --- CSVs, in the stage unzip ---

SPLIT_RULE = "must be one of train, val, test, unsupervised"
QUOTE = "a quote opens here but does not close at the end of its text; double quotes within a text and quote the whole text"
NO_LABEL = "is not a label; train, val and test rows need one"
RUSSIAN = CSV.replace("milk", "Молоко пастеризованное отборное").replace("tea", "ЧАЙ ЧЕРНЫЙ ЛИСТОВОЙ")

CSVS: list[tuple[str, str | bytes, str]] = [
    ("empty", "", " is empty; it needs a header that names text,label,split"),
    ("blank lines only", "\n\n \n", " is empty; it needs a header that names text,label,split"),
    ("a header only", "text,label,split\n", " has a header and no rows; it needs rows of text,label,split"),
    (
        "no header",
        CSV.split("\n", 1)[1],
        " lacks the column text; its header is 'milk,1,train' and must name …",
    ),
    (
        "a column missing",
        "text,split\nmilk,train\n",
        " lacks the column label; its header is 'text,split' and …",
    ),
    (
        "another name",
        CSV.replace("text", "Text"),
        " lacks the column text; its header is 'Text,label,split' …",
    ),
    ("a column twice", CSV.replace("text,", "text,text,"), " has two columns named text; leave one"),
    (
        "semicolons",
        CSV.replace(",", ";"),
        " lacks the column text; its columns seem to be separated by semicolons: …",
    ),
    (
        "tabs",
        CSV.replace(",", "\t"),
        " lacks the column text; its columns seem to be separated by tabs: save it …",
    ),
    (
        "bars",
        CSV.replace(",", "|"),
        " lacks the column text; its columns seem to be separated by vertical bars: …",
    ),
    (
        "cp1251",
        RUSSIAN.encode("cp1251"),
        ", line 2: not UTF-8, it seems to be windows-1251; save it as UTF-8",
    ),
    (
        "cp1251, few letters",
        CSV.replace("milk", "Чай чёрный").replace("tea", "Мыло").encode("cp1251"),
        ", line 2: not UTF-8, it seems to be windows-1251; save it as UTF-8",
    ),
    ("cp866", RUSSIAN.encode("cp866"), ", line 2: not UTF-8, it seems to be cp866 (DOS); save it as UTF-8"),
    ("koi8-r", RUSSIAN.encode("koi8-r"), ", line 2: not UTF-8, it seems to be koi8-r; save it as UTF-8"),
    ("utf-16", RUSSIAN.encode("utf-16"), ": not UTF-8, it seems to be utf-16; save it as UTF-8"),
    (
        "utf-16, no mark, Russian",
        ("text,label,split\n" + "молоко пастеризованное,чай,train\n" * 20).encode("utf-16-be"),
        ": not UTF-8, it seems to be utf-16; save it as UTF-8",
    ),
    ("utf-16, no mark", CSV.encode("utf-16-le"), ": not UTF-8, it seems to be utf-16; save it as UTF-8"),
    (
        "latin-1",
        CSV.replace("milk", "crème brûlée").encode("latin-1"),
        ", line 2: not UTF-8, it seems to be latin-1 or windows-1252; save it as UTF-8",
    ),
    (
        "damaged utf-8",
        (RUSSIAN * 20).encode().replace("пастер".encode(), "пасте".encode() + b"\xd1", 1),
        ", line 2: not UTF-8, it seems to be utf-8 with a few damaged bytes; save it as UTF-8",
    ),
    ("no text at all", CSV.encode() + bytes(range(128, 256)), ", line 7: not UTF-8; save it as UTF-8"),
    (
        "a NUL byte",
        CSV.replace("tea", "t\0a"),
        ", line 4: a NUL byte, which no text has; export the file again",
    ),
    (
        "NUL bytes, of a crash",
        CSV.encode() + bytes(100),
        ", line 7: a NUL byte, which no text has; export the file again",
    ),
    (
        "a name without end",
        f"{'x' * 200_000},{CSV}",
        ": a name in its header is longer than 131,072 characters, or its quote does not close; the header …",
    ),
    ("an open quote", CSV + '"tea,1,train\n', f", row 7: {QUOTE}"),
    ("an open quote far up", CSV.replace("milk", '"milk') + "tea,1,train\n" * 99, f", row 2: {QUOTE}"),
    ("a quote that swallows rows", CSV.replace("milk", '"milk').replace("tea", 'tea"'), f", row 2: {QUOTE}"),
    ("the same, without a last line end", 'text,label,split\n"a,1,train\nb",2,train', f", row 2: {QUOTE}"),
    ("the same, with spaces", 'text,label,split\n"a, 1, train\nb", 2, train\n', f", row 2: {QUOTE}"),
    ("the same, with carriage returns", 'text,label,split\r"a,1,train\rb",2,train\r', f", row 2: {QUOTE}"),
    ("the same, split first", 'split,text,label\ntrain,a,1\ntrain,"b,2\ntest,c",1\n', f", row 3: {QUOTE}"),
    (
        "a comma too many",
        CSV + "a,b,1,train\n",
        ", row 7: 4 fields, but the header has 3; quote texts that have commas",
    ),
    (
        "many commas too many",
        "text,label,split\na,1,train,\nb,2,val,\n",
        ", row 2: 4 fields, but the header has 3; …",
    ),
    ("an unknown split", CSV + "milk,1,training\n", f", row 7, column split: 'training' {SPLIT_RULE}"),
    ("too few fields", CSV + "milk\n", f", row 7, column split: '' {SPLIT_RULE}"),
    ("after a blank line", CSV + "\nmilk,1,dev\n", f", row 8, column split: 'dev' {SPLIT_RULE}"),
    (
        "after a text of two lines",
        CSV + '"a\nb",1,train\nmilk,1,dev\n',
        f", row 8 (line 9), column split: 'dev' {SPLIT_RULE}",
    ),
    ("missing labels", CSV + "a,,train\nb,,val\n", f", row 7, column label: '' {NO_LABEL} (and 1 more rows)"),
    ("a label nan", CSV + "milk,nan,train\n", f", row 7, column label: 'nan' {NO_LABEL}"),
    ("a label of Python", CSV + "milk,None,val\n", f", row 7, column label: 'None' {NO_LABEL}"),
    ("a label of SQL", CSV + "milk,NULL,test\n", f", row 7, column label: 'NULL' {NO_LABEL}"),
    ("a label of pandas", CSV + "milk,<NA>,train\n", f", row 7, column label: '<NA>' {NO_LABEL}"),
    ("a label of Excel", CSV + "milk,N/A,train\n", f", row 7, column label: 'N/A' {NO_LABEL}"),
    (
        "a number in two spellings",
        CSV + "a,01,train\nb,01,test\n",
        ", row 7, column label: '01' is the number of the label '1'; spell it in one way (and 1 more rows)",
    ),
    (
        "a long number among names",
        CSV.replace(",1,", ",dairy,").replace("tea,2", "tea,bread").replace("bread,2", f"bread,{'9' * 19}"),
        f", row 3, column label: '{'9' * 19}' is a whole number, but the labels of 3 other rows are …",
    ),
    (
        "fractional labels",
        CSV + "a,1.5,train\n",
        ", row 7, column label: '1.5' is a fraction; make labels whole …",
    ),
    (
        "fractions, of Excel",
        CSV + 'a,"1,5",train\n',
        ", row 7, column label: '1,5' is a fraction; make labels …",
    ),
    (
        "a name among numbers",
        CSV + "a,tea,train\n",
        ", row 7, column label: 'tea' is not a whole number, but the labels of 4 other rows are; make labels all numbers or all names",
    ),
    (
        "a number among names",
        CSV.replace(",1,", ",dairy,").replace("rye bread,2", "rye bread,bread"),
        ", row 4, column label: '2' is a whole number, but the labels of 3 other rows are names; make labels all …",
    ),
    (
        "one class in train",
        CSV.replace("bread,2", "bread,1"),
        " has train rows of one label only; there is nothing …",
    ),
    (
        "no test rows",
        CSV.replace("test", "val"),
        " has no rows with split=test; train, val, test, unsupervised are …",
    ),
    (
        "no unsupervised rows",
        CSV.replace("kvass,,unsupervised\n", ""),
        " has no rows with split=unsupervised; …",
    ),
    (
        "an absurdly long text",
        CSV + f"{'x' * 10_001},1,train\n",
        f", row 7, column text: '{'x' * 50}'... has more than 10,000 characters, which no receipt line has; cut it",
    ),
    (
        "nothing left to train on",
        CSV.replace("soap", "milk"),
        ", without the texts that are held out too, has train rows of one label only; there is nothing to tell apart",
    ),
    ("a terminal's codes", CSV + "milk,1,\x1b[2J\n", rf", row 7, column split: …x1b[2J' {SPLIT_RULE}"),
]


@pytest.mark.parametrize(("content", "expected"), [pytest.param(*row[1:], id=row[0]) for row in CSVS])
def test_csvs(bare_project: Path, content: str | bytes, expected: str) -> None:
    make_zip(bare_project / "in.zip", {"my receipts.csv": content})
    line = refusal(STAGES["unzip"], bare_project)
    assert matches(f"unzip: error: in.zip: my receipts.csv{expected}", line), line
    assert sorted(path.name for path in bare_project.rglob("*")) == ["data", "in.zip", "params.yaml"]


CATEGORIES: list[tuple[str, str, str]] = [
    (
        "another name",
        "label,title\n1,Tea\n",
        " lacks the column name; its header is 'label,title' and must name …",
    ),
    ("a label twice", "label,name\n1,Tea\n1.0,Soap\n", ", row 3, column label: '1' is named twice"),
    ("a header only twice", "label,name,name\n", " has two columns named name; leave one"),
    ("a name that goes on after its quote", 'label,name\n1,"Tea" black\n', f", row 2: {QUOTE}"),
    (
        "a name of two lines",
        'label,name\n1,"Tea\n2,Soap"\n',
        r", row 2, column name: 'Tea\n2,Soap' has a line break; write it on one line",
    ),
    (
        "a label of two lines",
        'label,name\n"1,Tea\n2",Soap\n',
        r", row 2, column label: '1,Tea\n2' has a line break; write it on one line",
    ),
]


@pytest.mark.parametrize(("content", "expected"), [pytest.param(*row[1:], id=row[0]) for row in CATEGORIES])
def test_categories(bare_project: Path, content: str, expected: str) -> None:
    make_zip(bare_project / "in.zip", {"data.csv": CSV, "x/categories.csv": content})
    line = refusal(STAGES["unzip"], bare_project)
    assert matches(f"unzip: error: in.zip: x/categories.csv{expected}", line), line


# --- What is wrong with a corpus that can still be used ---

WARNINGS: list[tuple[str, str, str]] = [
    (
        "a text in several splits",
        "milk,,unsupervised\n",
        "texts in several splits: 1; test rows among them: 0",
    ),
    (
        "test texts elsewhere",
        "TEA,1,train\nsoap,1,val\n soap ,,unsupervised\n",
        "rows left out because their text is held out in val or test: 1 train, 1 val, 1 unsupervised "
        "(data.train_on_held_out_texts=true keeps them); split texts, not rows (data/README.md)",
    ),
    (
        "a test text elsewhere, but hardly in train",
        " soap ,,unsupervised\n",
        "rows left out because their text is held out in val or test: 0 train, 0 val, 1 unsupervised "
        "(data.train_on_held_out_texts=true keeps them)",
    ),
    (
        "several labels of a text",
        "milk,2,train\n",
        "texts with several labels, at most one of which can be right: 1",
    ),
    (
        "labels of unsupervised rows",
        "gin,7,unsupervised\nrum,NULL,unsupervised\ngrog,N/A,unsupervised\n",
        "unsupervised rows with a label, which is ignored: 1; to learn from them, make them train rows",
    ),
    ("blank texts", " ,2,train\n,2,train\n", "blank texts: 2"),
    ("a class unseen in train", "rum,7,test\n", "classes without a train row, which cannot be learned: 1"),
]


@pytest.mark.parametrize(("rows", "expected"), [pytest.param(*row[1:], id=row[0]) for row in WARNINGS])
def test_warnings(bare_project: Path, capsys: pytest.CaptureFixture[str], rows: str, expected: str) -> None:
    make_zip(bare_project / "in.zip", {"data.csv": CSV})
    run_here(STAGES["unzip"], bare_project)
    assert "warning" not in capsys.readouterr().err
    make_zip(bare_project / "in.zip", {"data.csv": CSV + rows})
    run_here(STAGES["unzip"], bare_project)
    lines = capsys.readouterr().err.splitlines()
    assert any(matches(f"unzip: warning: {expected}", line) for line in lines), lines


def test_blank_texts_are_no_held_out_texts(bare_project: Path) -> None:
    make_zip(bare_project / "in.zip", {"data.csv": CSV + " ,2,train\n,1,test\n"})
    run_here(STAGES["unzip"], bare_project)
    counts = json.loads((bare_project / "metrics/data.json").read_text())
    assert counts["blank_texts"] == 2
    assert not any(counts["rows_left_out"].values())


def test_texts_held_out_are_trained_on_only_if_asked(
    bare_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doubled = 'SOAP,1,train\nTea,2,train\nsoap,1,val\n"soap",,unsupervised\n"a ""b""\n c",1,train\n'
    make_zip(bare_project / "in.zip", {"data.csv": CSV + doubled})
    run_here(STAGES["unzip"], bare_project)
    kept = (bare_project / "data/raw/data.csv").read_text()
    assert kept.splitlines()[1:] == [
        '"milk","1","train"',
        '"rye bread","2","train"',
        '"tea","2","val"',
        '"soap","1","test"',
        '"kvass","","unsupervised"',
        '"a ""b""',
        ' c","1","train"',
    ]
    counts = json.loads((bare_project / "metrics/data.json").read_text())
    assert counts["rows_left_out"] == {"train": 2, "val": 1, "unsupervised": 1}
    shared = "unzip: warning: texts in several splits: 2; test rows among them: 1"
    assert shared in capsys.readouterr().err.splitlines()
    set_params(bare_project, {"data.train_on_held_out_texts": "true"})
    run_here(STAGES["unzip"], bare_project)
    assert (bare_project / "data/raw/data.csv").read_text() == CSV + doubled
    counts = json.loads((bare_project / "metrics/data.json").read_text())
    assert counts["rows_left_out"] == {"train": 0, "val": 0, "unsupervised": 0}
    assert f"{shared}, so test scores may flatter" in capsys.readouterr().err.splitlines()


def test_the_tables_are_as_long_as_promised() -> None:
    assert len(ARCHIVES) + len(CSVS) + len(CATEGORIES) >= 60


def test_classes_are_counted_without_the_rows_that_are_left_out(
    bare_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_zip(bare_project / "in.zip", {"data.csv": CSV + "SOAP,3,train\nrum,3,test\n"})
    run_here(STAGES["unzip"], bare_project)
    assert "warning: classes without a train row, which cannot be learned: 1" in capsys.readouterr().err
    counts = json.loads((bare_project / "metrics/data.json").read_text())
    assert counts["rows"]["train"] == 3
    assert counts["classes"]["train"] == 2
    assert counts["classes_absent_from_train"] == 1


def test_labels_that_differ_in_spelling_alone_are_told(
    bare_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = (
        "unzip: warning: labels 'СЫР' and 'Сыр' are two classes, but differ only in case, spaces or accents"
    )
    content = "text,label,split\na,Tea,train\nb,Сыр,train\nc,Soap,val\nd,СЫР,test\ne,,unsupervised\n"
    for more, expected in (("", told), ("f,сыр ,test\n", f"{told}; so do 1 more")):
        make_zip(bare_project / "in.zip", {"data.csv": content + more})
        run_here(STAGES["unzip"], bare_project)
        assert expected in capsys.readouterr().err.splitlines()


def test_a_label_without_a_name_is_told(bare_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for names, expected in [
        ("1,Dairy", "label '2'"),
        ("7,Tea", "label '1' and 1 more"),
        ("", "label '1' and 1 more"),
        ("1,\n2", "label '1' and 1 more"),
    ]:
        categories = f"label,name\n{names}\n"
        make_zip(bare_project / "in.zip", {"data.csv": CSV, "categories.csv": categories})
        run_here(STAGES["unzip"], bare_project)
        line = f"unzip: warning: in.zip: categories.csv has no name for {expected}"
        assert line in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(("text", "share"), [("茶 , , ,", 0.25), (" ", 0)])
def test_unknown_tokens_are_counted(project: Path, text: str, share: float) -> None:
    corpus = pd.read_csv(project / "data/raw/data.csv", dtype=str, keep_default_na=False)
    corpus.loc[corpus["split"] == "test", "text"] = text
    corpus.to_csv(project / "data/raw/data.csv", index=False)
    run_here(STAGES["pretokenize"], project)
    told = json.loads((project / "metrics/tokens.json").read_text())["unknown_tokens"]
    assert told["test"] == share
