"""What is wrong with a corpus that can still be used: what is said, left out and counted."""

from pathlib import Path

import pandas as pd
import pytest

from tests.projects import CSV, STAGES, make_zip, matches, metric, run_here, set_params

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
        "a test text in a tenth of train",
        "soap,1,train\n" + "".join(f"bread {i},2,train\n" for i in range(7)),
        "rows left out because their text is held out in val or test: 1 train, 0 val, 0 unsupervised "
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
    (
        "a class unseen in train",
        "rum,7,test\n",
        "classes without a train row, which cannot be learned: 1 (label '7')",
    ),
    (
        "several classes unseen in train",
        "rum,17,test\ngin,7,val\n",
        "classes without a train row, which cannot be learned: 2 (label '7' and 1 more)",
    ),
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
    counts = metric(bare_project, "data")
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
    assert metric(bare_project, "data")["rows_left_out"] == {"train": 2, "val": 1, "unsupervised": 1}
    shared = "unzip: warning: texts in several splits: 2; test rows among them: 1"
    assert shared in capsys.readouterr().err.splitlines()
    set_params(bare_project, {"data.train_on_held_out_texts": "true"})
    run_here(STAGES["unzip"], bare_project)
    assert (bare_project / "data/raw/data.csv").read_text() == CSV + doubled
    assert metric(bare_project, "data")["rows_left_out"] == {"train": 0, "val": 0, "unsupervised": 0}
    assert f"{shared}, so test scores may flatter" in capsys.readouterr().err.splitlines()


def test_classes_are_counted_without_the_rows_that_are_left_out(
    bare_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_zip(bare_project / "in.zip", {"data.csv": CSV + "SOAP,3,train\nrum,3,test\n"})
    run_here(STAGES["unzip"], bare_project)
    assert "warning: classes without a train row, which cannot be learned: 1" in capsys.readouterr().err
    counts = metric(bare_project, "data")
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
    more_of_it, another = "f,сыр ,test\n", "g,чай,test\nh,ЧАЙ,test\n"
    for more, expected in (
        ("", told),
        (more_of_it, f"{told}; so do 1 more"),
        (more_of_it + another, f"{told}; so do 3 more"),
    ):
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
    assert metric(project, "tokens")["unknown_tokens"]["test"] == share
