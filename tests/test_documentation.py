"""What the documentation says one can type works as it stands."""

import argparse
import contextlib
import importlib
import re
import shlex
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dvc.cli.parser import get_main_parser

import common
from receiptbert import cli
from receiptbert.archive import extract_corpus
from receiptbert.corpus import read_corpus
from receiptbert.equal_texts import held_out_too, number_texts
from receiptbert.params_file import load_params
from receiptbert.sizes import SIZES
from receiptbert.splits import LABEL, SPLIT, TEXT, VAL
from tests.conftest import ROOT

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))
TRAINING = (ROOT / "docs/training.md").read_text()


def found(pattern: str) -> list[Any]:
    """What matches in the documents, each once; a tuple if the pattern has several groups."""
    return sorted({match for path in DOCUMENTS for match in re.findall(pattern, path.read_text())})


def commands() -> list[str]:
    """Those of receiptbert and DVC in blocks of code and between backticks."""
    blocks = "\n".join(found(r"(?s)```bash\n(.*?)```")).replace("\\\n", " ")
    inline = [" ".join(words.split()) for words in found(r"`((?:receiptbert|dvc) [^`]+)`")]
    # Variables of the shell stand for numbers; in a table a bar has a backslash.
    lines = [*blocks.replace("$((gpu + 1))", "1").splitlines(), *inline]
    parts = {part.strip(" \\") for line in lines for part in re.split(r"&&|[|&;]", line)}
    return sorted(part for part in parts if part.startswith(("receiptbert ", "dvc ")))


NAMED = r" (-S|--shard|--help|unprotect)$"  # what a sentence is about, without what follows
PARSERS = {"receiptbert": cli.make_parser(), "dvc": get_main_parser()}


def run_python(path: Path) -> None:
    """Run the snippets of a document in the current folder, each by itself."""
    snippets = re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)
    assert snippets
    for snippet in snippets:
        names: dict[str, Any] = {}
        exec(compile(textwrap.dedent(snippet), path.name, "exec"), names)


@pytest.mark.parametrize("name", ["README.md", "docs/reading.md", "docs/predicting.md"])
def test_snippets_of_python_run(
    tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(tiny_project / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    if "receipts.onnx" in (ROOT / name).read_text():
        cli.main(["export", "--onnx", "receipts.onnx"])
    if "new_labelled.csv" in (ROOT / name).read_text():
        corpus = read_corpus(tiny_project / "data/raw/data.csv")
        corpus.loc[corpus[SPLIT] == VAL, [TEXT, LABEL]].to_csv("new_labelled.csv", index=False)
        cli.main(["predict", "new_labelled.csv", "-o", "scored.csv"])
    run_python(ROOT / name)


def test_the_corpus_of_the_snippet_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [f"{'ЧАЙ ' if number < 20 else 'чай'} {number % 20}" for number in range(50)]
    pd.DataFrame({"text": texts, "label": 25 * [1, 2], "shop": "a"}).to_parquet("labelled.parquet")
    pd.DataFrame({"text": ["кофе", "какао"], "shop": "b"}).to_parquet("lines.parquet")
    run_python(ROOT / "data/README.md")
    extract_corpus(Path("my_receipts.zip"), tmp_path / "raw")
    corpus = read_corpus(tmp_path / "raw/data.csv")
    assert corpus[SPLIT].value_counts().to_dict() == {"train": 14, "test": 4, "val": 2, "unsupervised": 2}
    assert not held_out_too(corpus, number_texts(corpus[TEXT])).any()


@pytest.mark.parametrize("command", [line for line in commands() if not re.search(NAMED, line)])
def test_commands_of_receiptbert_and_dvc_are_such(command: str) -> None:
    program, *arguments = shlex.split(command, comments=True)
    PARSERS[program].parse_args(arguments)


@pytest.mark.parametrize("command", found(r"dvc exp run ([^`|\n]*-S [^`|\n]*)"))
def test_settings_of_experiments_are_such(command: str, tmp_path: Path) -> None:
    for setting in re.findall(r"-S '?([^\s']+)", command):
        key, _, values = setting.partition("=")
        for value in values.split(","):
            common.write_params(tmp_path, [f"{key}={value}"])
            load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(("name", "options"), found(r"python benchmarks/(\w+)\.py([^`\n]*)"))
def test_benchmarks_accept_the_options_that_are_given(name: str, options: str) -> None:
    parser_of(name).parse_args(shlex.split(options.replace(" ...", ""), comments=True))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_the_command_of_a_result_can_be_run_again(path: Path) -> None:
    text = path.read_text()
    typed = re.findall(r'"command": "(?:OMP_NUM_THREADS=\S+ )?python benchmarks/(\w+)\.py(.*)"', text)
    assert len(typed) == text.count('"command": ') > 0
    for name, options in typed:
        parser_of(name).parse_args(shlex.split(options))


def parser_of(name: str) -> argparse.ArgumentParser:
    """What parses the command line of a benchmark."""
    found: list[argparse.ArgumentParser] = []

    def find(parser: argparse.ArgumentParser, *_: object) -> None:
        found.append(parser)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(InterruptedError):
        patch.setattr(argparse.ArgumentParser, "parse_args", find)
        importlib.import_module(name).main()
    return found[0]


def test_the_rates_of_each_size_are_those_of_the_table() -> None:
    rows = re.findall(
        r"^\| (\w+)(?: \(shipped\))? \|.*\| ([\d.e-]+) \| ([\d.e-]+) \|$", TRAINING, re.MULTILINE
    )
    found = {name: (float(pretrain), float(finetune)) for name, pretrain, finetune in rows}
    assert found == {name: (size.pretrain.lr, size.finetune.lr) for name, size in SIZES.items()}


def anchors(path: Path) -> set[str]:
    """Those that the headings of a document give."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = [
    (str(path.relative_to(ROOT)), link, anchor)
    for path in DOCUMENTS
    for link, anchor in re.findall(r"\]\((?!https://)([^)#]*)(?:#([^)]+))?\)", path.read_text())
]


@pytest.mark.parametrize(("document", "link", "anchor"), sorted(set(LINKS)))
def test_links_lead_somewhere(document: str, link: str, anchor: str) -> None:
    path = ROOT / document
    assert (path.parent / link).exists()
    assert not anchor or anchor in anchors(path.parent / link if link else path)
