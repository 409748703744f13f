"""Bad CSVs in an archive, each with the line that ``unzip`` must end with.

The tables are read as in test_refusals_of_archives.py.
"""

from pathlib import Path

import pytest

from tests.projects import CSV, make_zip, refuses

NO_SPLIT = "is no split; fill it in, and quote texts that have line breaks"
SPLIT_RULE = "must be one of train, val, test, unsupervised"
QUOTE = "a quote opens here and seems to close in another row; double quotes within a text and quote the whole text"
SWALLOWED = f"{QUOTE}; if it is one text with a line break, take the break out"
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
    ("a no-break space first", f"\u00a0\n{CSV}", " lacks the column text; its header is '\\xa0' and …"),
    ("a no-break space", CSV.replace("\n", "\n\u00a0\n", 1), f", row 2, column split: '' {NO_SPLIT}"),
    ("a column twice", CSV.replace("text,", "text,text,"), " has two columns named text; keep one"),
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
    ("a text that goes on after its quote", CSV.replace("milk", '"milk" 3%'), f", row 2: {QUOTE}"),
    ("an open quote far up", CSV.replace("milk", '"milk') + "tea,1,train\n" * 99, f", row 2: {QUOTE}"),
    (
        "a quote that swallows rows",
        CSV.replace("milk", '"milk').replace("tea", 'tea"'),
        f", row 2: {SWALLOWED}",
    ),
    (
        "the same, without a last line end",
        'text,label,split\n"a,1,train\nb",2,train',
        f", row 2: {SWALLOWED}",
    ),
    ("the same, with spaces", 'text,label,split\n"a, 1, train\nb", 2, train\n', f", row 2: {SWALLOWED}"),
    (
        "the same, with carriage returns",
        'text,label,split\r"a,1,train\rb",2,train\r',
        f", row 2: {SWALLOWED}",
    ),
    (
        "the same, split first",
        'split,text,label\ntrain,a,1\ntrain,"b,2\ntest,c",1\n',
        f", row 3: {SWALLOWED}",
    ),
    (
        "a comma too many",
        CSV + "a,b,1,train\n",
        ", row 7: 4 fields, but the header has 3; quote texts that have commas",
    ),
    (
        "the same, below a text of two lines",
        CSV + '"tea\ngreen",1,train\na,b,1,train\n',
        ", row 8 (line 9): 4 fields, but the header has 3; quote texts that have commas",
    ),
    (
        "the same, long before bytes of another encoding",
        (CSV + "a,b,1,train\n" + "tea,1,train\n" * 60_000).encode() + "чай,1,train\n".encode("cp1251"),
        ", row 7: 4 fields, but the header has 3; quote texts that have commas",
    ),
    (
        "many commas too many",
        "text,label,split\na,1,train,\nb,2,val,\n",
        ", row 2: 4 fields, but the header has 3; …",
    ),
    ("an unknown split", CSV + "milk,1,training\n", f", row 7, column split: 'training' {SPLIT_RULE}"),
    ("too few fields", CSV + "milk\n", f", row 7, column split: '' {NO_SPLIT}"),
    ("a line break without quotes", CSV + "rye\nbread,1,train\n", f", row 7, column split: '' {NO_SPLIT}"),
    (
        "a carriage return without quotes",
        CSV + "rye\rbread,1,train\n",
        f", row 7, column split: '' {NO_SPLIT}",
    ),
    ("after a blank line", CSV + "\nmilk,1,dev\n", f", row 8, column split: 'dev' {SPLIT_RULE}"),
    (
        "after a text of two lines",
        CSV + '"a\nb",1,train\nmilk,1,dev\n',
        f", row 8 (line 9), column split: 'dev' {SPLIT_RULE}",
    ),
    ("missing labels", CSV + "a,,train\nb,,val\n", f", row 7, column label: '' {NO_LABEL} (2 rows)"),
    ("a label nan", CSV + "milk,nan,train\n", f", row 7, column label: 'nan' {NO_LABEL}"),
    ("a label of Python", CSV + "milk,None,val\n", f", row 7, column label: 'None' {NO_LABEL}"),
    ("a label of SQL", CSV + "milk,NULL,test\n", f", row 7, column label: 'NULL' {NO_LABEL}"),
    ("a label of pandas", CSV + "milk,<NA>,train\n", f", row 7, column label: '<NA>' {NO_LABEL}"),
    ("a label of a table", CSV + "milk,N/A,train\n", f", row 7, column label: 'N/A' {NO_LABEL}"),
    ("a label of Excel", CSV + "milk,#N/A,train\n", f", row 7, column label: '#N/A' {NO_LABEL}"),
    ("a label of a Russian Excel", CSV + "milk,#Н/Д,train\n", f", row 7, column label: '#Н/Д' {NO_LABEL}"),
    ("an error of Excel", CSV + "milk,#REF!,train\n", f", row 7, column label: '#REF!' {NO_LABEL}"),
    ("a label of ClickHouse", CSV + "milk,\\N,train\n", f", row 7, column label: '\\\\N' {NO_LABEL}"),
    ("after empty rows", CSV + ",,\n,,\nmilk,1,dev\n", f", row 9, column split: 'dev' {SPLIT_RULE}"),
    ("a label of R", CSV + "milk,NA,train\n", f", row 7, column label: 'NA' {NO_LABEL}"),
    (
        "a number in two spellings",
        CSV + "a,01,train\nb,01,test\n",
        ", row 7, column label: '01' is the number of the label '1'; spell it in one way (2 rows)",
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
        "fractions without a whole part",
        CSV + "milk,.5,train\n",
        ", row 7, column label: '.5' is a fraction; make labels …",
    ),
    (
        "fractions with an exponent",
        CSV + "milk,1.5e-3,train\n",
        ", row 7, column label: '1.5e-3' is a fraction; make labels …",
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
    refuses("unzip", bare_project, f"in.zip: my receipts.csv{expected}")
    assert sorted(path.name for path in bare_project.rglob("*")) == ["data", "in.zip", "params.yaml"]


CATEGORIES: list[tuple[str, str, str]] = [
    (
        "another name",
        "label,title\n1,Tea\n",
        " lacks the column name; its header is 'label,title' and must name …",
    ),
    ("a label twice", "label,name\n1,Tea\n1.0,Soap\n", ", row 3, column label: '1' is named twice"),
    ("a header only twice", "label,name,name\n", " has two columns named name; keep one"),
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
    refuses("unzip", bare_project, f"in.zip: x/categories.csv{expected}")
