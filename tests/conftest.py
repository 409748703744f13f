"""What the tests share: a small corpus, its tokenizer, and models small enough to train in a test."""

import importlib
import io
import logging
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import settings
from tensorboard.summary.writer import event_file_writer

import common
from receiptbert import BertFinetuneModel, BertModel, WordpieceTokenizer
from receiptbert.hf_format import save_pretrained
from receiptbert.inference import inference_loader, predict_logits

# A busy machine is no failure, and a failure must come again.
settings.register_profile("receiptbert", deadline=None, derandomize=True)
settings.load_profile("receiptbert")

# Tests send these signals, which are ignored by what nohup or a script starts in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# What programs handle.
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]

# The models here are so small that a second thread only costs time.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ROOT / "tests/settings.yaml"
Make = Callable[..., Any]  # what fixtures give that make things

# Modules with fixtures of a few test modules each.
pytest_plugins = [
    "tests.projects",
    "tests.benchmark_runs",
    "tests.predict_runs",
    "tests.small_trainings",
    "tests.training_runs",
    "tests.small_models",
    "tests.finetune_runs",
]

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "max_seqlen": 14,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "act_func": "gelu",
}


@pytest.fixture(scope="session", autouse=True)
def _settings_of_tests() -> Iterator[None]:
    """Benchmarks begin with them too, instead of params.yaml."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "PARAMS", SETTINGS)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew")


LONGEST_FIRST = [
    "test_pipeline.py",
    "test_benchmarks.py",
    "test_benchmarks_of_training.py",
    "test_benchmarks_of_models.py",
    "test_distributed.py",
    "test_properties.py",
    "test_properties_of_batches.py",
    "test_settings.py",
    "test_stages.py",
    "test_failures.py",
    "test_resumption.py",
    "test_interrupts.py",
    "test_cli.py",
    "test_trainer.py",
    "test_training.py",
    "test_quality.py",
    "test_learning_curve.py",
    "test_documentation.py",
    "test_onnx_export.py",
    "test_chaos.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first: begun last, one would leave the other workers with nothing to do."""
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session", autouse=True)
def _without_waiting_for_the_disk() -> Iterator[None]:
    """What tests write need not survive a power failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Whatever ran before in this process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_names_of_event_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one second they differ in a number alone, and are read in the order of their names: 10 before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


@pytest.fixture(autouse=True)
def _same_signal_handlers() -> Iterator[None]:
    """Commands and torch's launcher leave theirs: a program that calls them ends soon, pytest does not."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """200 lines of 1 to 12 invented words."""
    rng = random.Random(0)
    words = ["".join(rng.choices("абвгдежз", k=rng.randint(1, 4))) for _ in range(60)]
    return [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(200)]


@pytest.fixture(scope="session")
def tokenizer(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> WordpieceTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return WordpieceTokenizer.from_corpus(texts, folder / "corpus.txt", folder, "test", vocab_size=60)


@contextmanager
def log(name: str | None, level: int) -> Iterator[io.StringIO]:
    """What is logged meanwhile, in fixtures of a module, too, which cannot have ``caplog``."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    handler.setLevel(level)
    logging.getLogger(name).addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger(name).removeHandler(handler)


class Cut(Exception):  # noqa: N818
    """Stands for kill -9: nothing is done after it."""


Model = TypeVar("Model", bound=torch.nn.Module)


def enlarged(model: Model) -> Model:
    """Ten times the initial weights: a deviation of 0.02 suits hundreds of dimensions, not sixteen."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
    return model


def balanced(model: BertFinetuneModel, texts: list[str], tokenizer: WordpieceTokenizer) -> BertFinetuneModel:
    """Have each class get some of ``texts``: a model with random weights may give all of them one class."""
    loader = inference_loader(texts, tokenizer, model.shape.maxlen)
    logits = predict_logits(model, loader, tokenizer.pad_token_id, torch.device("cpu"))
    with torch.no_grad():
        model._classifier_head._output.bias.sub_(torch.from_numpy(logits.mean(axis=0)))
    return model


@pytest.fixture
def pretrain_model(tokenizer: WordpieceTokenizer) -> Callable[..., BertModel]:
    """Make a small ``BertModel`` from seed 0; keyword arguments override its shape."""

    def make(**overrides: Any) -> BertModel:
        torch.manual_seed(0)
        return enlarged(BertModel(vocab_size=tokenizer.vocab_size, **(SHAPE | overrides)))

    return make


@pytest.fixture
def finetune_model(tokenizer: WordpieceTokenizer) -> Callable[..., BertFinetuneModel]:
    """Make a small ``BertFinetuneModel`` of 3 classes from seed 0."""

    def make(**overrides: Any) -> BertFinetuneModel:
        torch.manual_seed(0)
        arguments = SHAPE | {"num_classes": 3} | overrides
        return enlarged(BertFinetuneModel(vocab_size=tokenizer.vocab_size, **arguments))

    return make


LABELS, CATEGORIES = ["7", "12", "30"], ["Чай", "Сыр", "Мыло"]


@pytest.fixture(scope="session")
def made_checkpoint(
    tokenizer: WordpieceTokenizer, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What ``checkpoint`` copies."""
    torch.manual_seed(0)
    model = enlarged(BertFinetuneModel(vocab_size=tokenizer.vocab_size, **SHAPE, num_classes=3))
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save_pretrained(balanced(model, texts, tokenizer), tokenizer, folder, CATEGORIES, LABELS)
    return folder


@pytest.fixture
def checkpoint(made_checkpoint: Path, tmp_path: Path) -> Path:
    """The folder of a classifier with random weights, which answers with each of its classes now and then."""
    return Path(shutil.copytree(made_checkpoint, tmp_path / "model"))


@pytest.fixture
def apex(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stand-in for ``apex.amp``, which needs no GPU; it is imported only if it is chosen."""
    monkeypatch.syspath_prepend(ROOT / "tests/standin")
    monkeypatch.setattr("receiptbert.amp.check_amp_backend", lambda *_: None)
    yield importlib.import_module("apex.amp")
    for name in ("apex", "apex.amp"):
        del sys.modules[name]


def overflow(trainer: Any, times: int = 1) -> None:
    """Make the gradients of the next ``times`` backward passes of a trainer too large for fp16."""
    left = [torch.inf] * times
    next(trainer._model.parameters()).register_hook(
        lambda grad: torch.full_like(grad, left.pop()) if left else grad
    )
