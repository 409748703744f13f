"""The command line, ``receiptbert COMMAND``: its arguments, and how it ends."""

import argparse
import math
import re
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from receiptbert.choices import PRECISIONS, PREDICTION_BATCH_SIZE
from receiptbert.errors import DEBUG, Interrupted, discard, one_line_errors, printable
from receiptbert.failures import explain
from receiptbert.interrupts import ending_signals
from receiptbert.predicting import INPUTS, OUTPUTS, open_table, predict
from receiptbert.progress import say
from receiptbert.splits import TEXT

PROGRAM = "receiptbert"
EPILOG = f"Bad input ends with one line and status 1 (bad arguments: 2); {DEBUG}=1 shows the traceback."

PREDICT = """\
Label each line of a table with its category.

All columns of the input are kept, in its order; behind them come label (as in the corpus that the model
learned from), category (its name) and confidence (a probability from 0 to 1). Where the input has one of
these columns already, all of ours begin with predicted_.

The endings tell the formats: .csv, .tsv, .parquet and .txt (plain lines) are read; .csv, .tsv, .parquet
and .jsonl are written. Text is UTF-8. A CSV has a header, and commas, semicolons, tabs or vertical bars
between its fields; texts of an only column may have any of them. A CSV written from a CSV keeps its
delimiter, one written from anything else has commas. Empty lines of a CSV are no rows, nor are lines of
spaces where it has several columns; a row that is too short is filled up. Plain lines have no header,
and each of them is a row, an empty one too. A text without anything to read gets an empty label and a
confidence of 0."""

PREDICT_EXAMPLES = """\
examples:
  receiptbert predict receipts.csv -o labelled.csv
  receiptbert predict receipts.parquet --column name --top-k 3 -o labelled.parquet
  receiptbert predict receipts.csv --min-confidence 0.8 --spreadsheet -o to_check.csv
  cat lines.txt | receiptbert predict > labelled.csv
  zcat receipts.csv.gz | receiptbert predict --from csv -o labelled.csv
  receiptbert predict receipts.csv --shard 1/2 --device cuda:0 -o first_half.csv
"""


EXPORT = """\
Write a finetuned model as one file for ONNX Runtime, which needs neither torch nor receiptbert.

Inputs are input_ids and attention_mask, (batch, length): at least one line, and a length from 1 to
max_length. The output is probabilities, at the model's temperature. Metadata of the file are labels and
categories (JSON lists) and max_length. The file is written only if it gives the classes that torch gives, and
probabilities within 0.0001 of torch's (before --int8)."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; on bad input, end the process with one line and status 1."""
    command = ""
    try:
        with one_line_errors(PROGRAM, lambda error: _explain(error, command)):
            parser = make_parser()
            args, unknown = parser.parse_known_args(argv)
            if unknown:
                # A shell makes several files of `*.csv`.
                one_file = "" if unknown[0].startswith("-") else "; a command takes one file"
                parser.error(f"unrecognized arguments: {' '.join(unknown)}{one_file}")
            command = args.command
            for number in ending_signals():
                if number != signal.SIGINT:  # `kill`, too, leaves nothing half done
                    signal.signal(number, _terminated)
            args.run(args)
    except BrokenPipeError:  # whoever read our output has seen enough (`| head`)
        discard(sys.stdout)
        sys.exit(141)  # as if SIGPIPE had ended the program
    except SystemExit:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:  # stdout is what failed
            discard(sys.stdout)
        raise


def _terminated(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(number)


def _explain(error: Exception, command: str) -> str | None:
    if (line := explain(error, command)) is None and isinstance(error, FileNotFoundError):
        where = f"{error.filename}: " if error.filename else ""
        return printable(f"{where}{error.strerror or error}")
    return line


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``run``, which takes the arguments."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Receipt lines to product categories.", epilog=EPILOG
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    add_predict(commands)
    add_export(commands)
    return parser


class _Version(argparse.Action):
    """Prints the version."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata  # noqa: PLC0415 - takes as long as all the rest

        print(f"{PROGRAM} {metadata.version(PROGRAM)}")
        parser.exit()


def add_predict(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """``receiptbert predict``."""
    parser = commands.add_parser(
        "predict",
        help="label the lines of a CSV, TSV, Parquet or text file",
        description=PREDICT,
        epilog=PREDICT_EXAMPLES + "\n" + EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=predict)
    _add_table_options(parser.add_argument_group("input and output"))
    _add_answer_options(parser.add_argument_group("answers"))
    model = parser.add_argument_group("model")
    _add_model_option(model)
    model.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda:1 ...")
    model.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="fp32 (default) gives the labels that evaluate scores, but none to blank texts; bf16 and fp16 "
        "are faster where the hardware has them, and may decide close calls differently; auto chooses",
    )
    model.add_argument(
        "--batch-size",
        type=positive,
        default=PREDICTION_BATCH_SIZE,
        metavar="N",
        help="texts computed at once, on average (%(default)s)",
    )


def _add_table_options(table: "argparse._ArgumentGroup") -> None:
    table.add_argument("input", type=_name, nargs="?", default="-", help="file to read; - is stdin (default)")
    table.add_argument(
        "-o",
        "--output",
        type=_name,
        metavar="FILE",
        default="-",
        help="file to write, even the input; it appears only when it is whole; - is stdout (default)",
    )
    table.add_argument("--column", metavar="NAME", default=TEXT, help="column of the texts (%(default)s)")
    table.add_argument(
        "--from",
        dest="source_format",
        choices=sorted(set(INPUTS.values())),
        help="format of the input, if its extension does not tell (stdin: lines)",
    )
    table.add_argument(
        "--to",
        dest="target_format",
        choices=sorted(set(OUTPUTS.values())),
        help="format of the output, if its extension does not tell (stdout: csv)",
    )
    table.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="label only the I-th of N equal parts of the lines; the N outputs in order make the whole",
    )


def _add_answer_options(answers: "argparse._ArgumentGroup") -> None:
    answers.add_argument(
        "--top-k",
        type=partial(positive, digits=3),
        default=1,
        metavar="N",
        help="give the N best classes: label_2, category_2, confidence_2 and so on (%(default)s)",
    )
    answers.add_argument(
        "--min-confidence",
        type=_probability,
        default=0.0,
        metavar="P",
        help="leave labels and categories empty where the confidence in the best is below P, for a person to "
        "decide (%(default)s: decide every line)",
    )
    answers.add_argument(
        "--spreadsheet",
        action="store_true",
        help="write CSV or TSV for Excel and the like: with a byte order mark, and an apostrophe before "
        "what would run as a formula",
    )


def add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """``receiptbert export``."""
    parser = commands.add_parser(
        "export",
        help="write a model as an ONNX file",
        description=EXPORT,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=export)
    parser.add_argument("--onnx", type=_name, metavar="FILE", required=True, help="file to write")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="8-bit weights: a quarter of the size, and other answers for some lines",
    )
    _add_model_option(parser)
    parser.add_argument(
        "--lines",
        type=_name,
        metavar="FILE",
        help="plain lines to compare the answers on (default: lines of random words of the vocabulary)",
    )


def export(args: argparse.Namespace) -> None:
    """Run the command."""
    texts = None
    if args.lines:
        table = open_table(Path(args.lines), "lines")
        texts = [text for (column,) in table.chunks() for text in table.texts(column)]
    from receiptbert.onnx_export import export_onnx  # noqa: PLC0415 - torch and its exporter take seconds

    agreement = export_onnx(Path(args.model), Path(args.onnx), args.int8, texts)
    say(
        f"{args.onnx}: {agreement.same_labels:.2%} of {agreement.lines:,} lines get the class of torch, "
        f"probabilities differ by {agreement.difference:.1e} at the most"
    )


def _add_model_option(parser: "argparse._ActionsContainer") -> None:
    parser.add_argument(
        "--model",
        type=_name,
        metavar="FOLDER",
        default="models/finetuned",
        help="finetuned checkpoint (%(default)s)",
    )


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text} is not a part such as 1/4, 2/4, 3/4 or 4/4")
    return int(found[1]), int(found[2])


def positive(text: str, digits: int = 6) -> int:
    """The type of an option that is a positive integer of so many ``digits`` at most."""
    if not re.fullmatch(rf"0*[1-9]\d{{0,{digits - 1}}}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to {10**digits - 1:,}")
    return int(text)


def _probability(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return number
