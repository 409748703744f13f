import sys

import pytest

import receiptbert
from receiptbert.choices import PRECISIONS
from receiptbert.precision import DTYPES

NAMES = [
    "Bert",
    "BertEmbeddings",
    "BertFinetuneModel",
    "BertLayer",
    "BertModel",
    "Classifier",
    "ClassifierHead",
    "Collator",
    "FeedForward",
    "FinetuneDataset",
    "FinetuneTrainer",
    "InferenceDataset",
    "MlmHead",
    "MultiHeadSelfAttention",
    "PretrainDataset",
    "Scheduler",
    "Trainer",
    "WordpieceTokenizer",
    "collate_fn",
    "get_optimizer",
    "init_layer",
    "load_weights",
    "make_scorer",
]


def test_every_public_name_is_importable() -> None:
    assert receiptbert.__all__ == dir(receiptbert) == NAMES
    for name in NAMES:
        assert getattr(receiptbert, name).__name__ == name
        assert getattr(receiptbert, name).__doc__


def test_what_a_plain_install_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages of training."""
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    for module in ("receiptbert.metrics", "receiptbert.finetune_trainer"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ImportError, match=r"make_scorer needs the package sklearn.metrics; install"):
        _ = receiptbert.make_scorer
    monkeypatch.setitem(receiptbert._MODULE_OF, "make_scorer", "no_such_module")
    with pytest.raises(ModuleNotFoundError, match=r"receiptbert\.no_such_module"):  # our own bug, not theirs
        _ = receiptbert.make_scorer


def test_choices_are_what_there_is() -> None:
    assert ["auto", *DTYPES] == PRECISIONS
