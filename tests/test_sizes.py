"""The published family: as many parameters as published, and each of them trains and resumes."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForPreTraining

from receiptbert import BertModel, WordpieceTokenizer
from receiptbert.checkpoints import Checkpoints
from receiptbert.encoder import parameter_counts
from receiptbert.params import Params
from receiptbert.params_file import load_params
from receiptbert.sizes import SIZES
from tests.conftest import SETTINGS, Make
from tests.projects import with_value

VOCABULARY, POSITIONS = 30_522, 512  # of the published models


@pytest.fixture
def read_params(tmp_path: Path) -> Callable[..., Params]:
    """Settings with other values of ``model``."""

    def read(**values: object) -> Params:
        text = SETTINGS.read_text()
        for name, value in values.items():
            text = with_value(text, f"model.{name}", str(value))
        (tmp_path / "params.yaml").write_text(text)
        return load_params(tmp_path / "params.yaml")

    return read


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


# In millions. Turc et al. count the heads of pretraining; Devlin et al. say 340 of large.
@pytest.mark.parametrize(
    ("size", "published"),
    [("tiny", 4.4), ("mini", 11.3), ("small", 29.1), ("medium", 41.7), ("base", 110.1), ("large", 336.2)],
)
def test_as_many_parameters_as_published(
    read_params: Callable[..., Params], size: str, published: float
) -> None:
    model = read_params(size=size).model
    with torch.device("meta"):  # takes no memory
        ours = BertModel(**model.kwargs(), vocab_size=VOCABULARY, max_seqlen=POSITIONS)
        theirs = BertForPreTraining(
            BertConfig(
                vocab_size=VOCABULARY,
                max_position_embeddings=POSITIONS,
                hidden_size=model.hidden_size,
                num_hidden_layers=model.num_hidden_layers,
                num_attention_heads=model.num_attention_heads,
                intermediate_size=model.intermediate_size,
            )
        )
    encoder, heads = theirs.bert.encoder, theirs.cls
    shared = theirs.bert.embeddings.word_embeddings.weight.numel()
    expected = {
        "embeddings": count(theirs.bert.embeddings),
        "attention": count(*(layer.attention for layer in encoder.layer)),
        "feed-forward": count(
            *(part for layer in encoder.layer for part in (layer.intermediate, layer.output))
        ),
        "heads": count(theirs.bert.pooler, heads) - shared,
    }
    assert round(count(theirs) / 1e6, 1) == published
    assert sum(expected.values()) == count(theirs)
    expected["heads"] -= model.hidden_size + 1  # one number tells the order; their head answers with two
    assert parameter_counts(ours.shape, None) == expected
    assert count(ours) == sum(expected.values())


# Of large the depth is run, with two heads: a whole one would take 12 GiB. So run, those between differ from
# it in their depth alone.
BETWEEN = {"small", "medium", "base"}


@pytest.mark.parametrize("size", sorted(SIZES.keys() - BETWEEN))
def test_each_size_trains_a_step_and_resumes(
    read_params: Callable[..., Params],
    texts: list[str],
    tokenizer: WordpieceTokenizer,
    pretrainer: Make,
    pretrain_loader: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    size: str,
) -> None:
    params = read_params(size=size, **({"hidden_size": 128} if size == "large" else {}))
    torch.manual_seed(0)
    model = BertModel(
        **params.model.kwargs(),
        vocab_size=tokenizer.vocab_size,
        max_seqlen=14,
        hidden_dropout_prob=params.pretrain.dropout,
    )

    def train(
        model: BertModel, epochs: int, checkpoints: Checkpoints | None = None
    ) -> list[dict[str, float]]:
        torch.manual_seed(1)
        trainer = pretrainer(model, checkpoints=checkpoints)
        trainer.train(pretrain_loader(texts[:2]), epochs)
        return trainer.history

    whole = train(copy.deepcopy(model), 2)
    with Checkpoints(tmp_path / "pretrain", "parameters", seconds=0) as checkpoints:
        train(model, 1, checkpoints)
        for parameter in model.parameters():
            parameter.detach().zero_()
        assert train(model, 2, checkpoints) == whole
    assert len(whole) == 2
    assert "resumed after step 1" in capsys.readouterr().err
