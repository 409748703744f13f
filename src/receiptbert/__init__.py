"""Receipt lines to product categories with a BERT pretrained from scratch.

``Classifier`` uses a finished model; the assignment's classes and functions train one. All are importable
from here; each is loaded when it is first used, so that ``import receiptbert`` is quick and a stage that
needs no torch does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what a type checker and an editor see
    from receiptbert.classifier import Classifier as Classifier
    from receiptbert.collation import Collator as Collator
    from receiptbert.collation import collate_fn as collate_fn
    from receiptbert.datasets import FinetuneDataset as FinetuneDataset
    from receiptbert.datasets import InferenceDataset as InferenceDataset
    from receiptbert.datasets import PretrainDataset as PretrainDataset
    from receiptbert.encoder import Bert as Bert
    from receiptbert.finetune_trainer import FinetuneTrainer as FinetuneTrainer
    from receiptbert.finetune_trainer import make_scorer as make_scorer
    from receiptbert.hf_format import load_weights as load_weights
    from receiptbert.initialization import init_layer as init_layer
    from receiptbert.layers import BertEmbeddings as BertEmbeddings
    from receiptbert.layers import BertLayer as BertLayer
    from receiptbert.layers import FeedForward as FeedForward
    from receiptbert.layers import MultiHeadSelfAttention as MultiHeadSelfAttention
    from receiptbert.modeling import BertFinetuneModel as BertFinetuneModel
    from receiptbert.modeling import BertModel as BertModel
    from receiptbert.modeling import ClassifierHead as ClassifierHead
    from receiptbert.modeling import MlmHead as MlmHead
    from receiptbert.optimization import Scheduler as Scheduler
    from receiptbert.optimization import get_optimizer as get_optimizer
    from receiptbert.tokenization import WordpieceTokenizer as WordpieceTokenizer
    from receiptbert.trainer import Trainer as Trainer

_EXPORTS = {
    "classifier": ["Classifier"],
    "collation": ["Collator", "collate_fn"],
    "datasets": ["FinetuneDataset", "InferenceDataset", "PretrainDataset"],
    "encoder": ["Bert"],
    "finetune_trainer": ["FinetuneTrainer", "make_scorer"],
    "hf_format": ["load_weights"],
    "initialization": ["init_layer"],
    "layers": ["BertEmbeddings", "BertLayer", "FeedForward", "MultiHeadSelfAttention"],
    "modeling": ["BertFinetuneModel", "BertModel", "ClassifierHead", "MlmHead"],
    "optimization": ["Scheduler", "get_optimizer"],
    "tokenization": ["WordpieceTokenizer"],
    "trainer": ["Trainer"],
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(__name__):
            raise
        raise ImportError(
            f"{__name__}.{name} needs the package {error.name}; install receiptbert[train]"
        ) from error


def __dir__() -> list[str]:
    return __all__
