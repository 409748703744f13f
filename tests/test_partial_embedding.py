"""Finetuning the embeddings of some tokens is finetuning with all of them, for less work."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from receiptbert import BertFinetuneModel, WordpieceTokenizer, get_optimizer
from receiptbert.partial_embedding import only_tokens, tokens_in
from receiptbert.token_store import TokenStore
from tests.conftest import Make
from tests.small_trainings import labelled


def table(model: BertFinetuneModel) -> Tensor:
    return model.backbone.get_token_embeddings().weight.detach()


@pytest.fixture
def few(texts: list[str], tokenizer: WordpieceTokenizer) -> list[str]:
    """Texts that lack some tokens, none so long that it is cut."""
    return [text for text in texts if 2 < len(tokenizer(text)) < 10][:8]


@pytest.fixture
def present(few: list[str], tokenizer: WordpieceTokenizer) -> Tensor:
    ids = tokens_in(TokenStore.from_texts(labelled(few)[0], tokenizer), tokenizer)
    assert 8 < len(ids) < tokenizer.vocab_size - 8
    return ids


def absent(present: Tensor, model: BertFinetuneModel) -> Tensor:
    rest = torch.ones(model.shape.vocab_size, dtype=torch.bool)
    rest[present] = False
    return rest.nonzero().squeeze(1)


def test_the_tokens_of_texts_are_those_of_their_inputs(
    few: list[str], finetuner: Make, present: Tensor
) -> None:
    _, loaders = finetuner(texts=few)
    seen = torch.cat([input_ids.flatten() for input_ids, _ in loaders["train"]])
    assert seen.unique().tolist() == present.tolist()  # with [CLS], [SEP] and, in padding, [PAD]


def test_training_some_rows_is_training_all_without_their_decay(
    few: list[str], tokenizer: WordpieceTokenizer, finetune_model: Make, finetuner: Make, present: Tensor
) -> None:
    def train(context: Any) -> tuple[list[float], BertFinetuneModel]:
        model = finetune_model()
        with context(model):
            trainer, loaders = finetuner(model, few, max_grad_norm=0.1)
            for group in trainer._optimizer.param_groups:
                group["weight_decay"] = 0.0
            trainer.train(loaders, 10)
        return [record["loss"] for record in trainer.history] + [trainer.history[-1]["grad_norm"]], model

    (losses, some), (expected, all_rows) = (
        train(lambda model: only_tokens(model, present)),
        train(lambda _: nullcontext()),
    )
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, weights in all_rows.state_dict().items():
        torch.testing.assert_close(some.state_dict()[name], weights, rtol=1e-4, atol=1e-6)
    changed = (table(some) != table(finetune_model())).any(1).nonzero().squeeze(1)
    # Nothing reads the hidden state of [PAD].
    assert {*changed.tolist(), tokenizer.pad_token_id} == set(present.tolist())


def test_absent_tokens_are_not_decayed(
    few: list[str], finetune_model: Make, finetuner: Make, present: Tensor
) -> None:
    model, before = finetune_model(), table(finetune_model())
    with only_tokens(model, present):
        trainer, loaders = finetuner(model, few)
        trainer.train(loaders, 2)
        decayed, _ = get_optimizer(model).param_groups
        assert any(len(parameter) == len(present) for parameter in decayed["params"])
    rest = absent(present, model)
    assert torch.equal(table(model)[rest], before[rest])


def test_evaluation_knows_all_tokens_and_training_refuses_absent_ones(
    finetune_model: Make, present: Tensor
) -> None:
    model = finetune_model().eval()
    inputs = torch.arange(model.shape.vocab_size)[None]
    logits = model(inputs[:, :8])
    with only_tokens(model, present):
        assert torch.equal(model(inputs[:, :8]), logits)
        with torch.no_grad():
            next(iter(model.parameters())).add_(1.0)  # the rows of the tokens that are present
        changed = model(inputs[:, :8])
        model.train()
        with pytest.raises(IndexError):
            model(absent(present, model)[None, :1])
    assert not torch.equal(changed, logits)
    assert torch.equal(model.eval()(inputs[:, :8]), changed)


def test_the_model_has_the_same_names_before_and_after(finetune_model: Make, present: Tensor) -> None:
    model = finetune_model()
    before = {name: weights.shape for name, weights in model.state_dict().items()}
    with only_tokens(model, present):
        within = {name: weights.shape for name, weights in model.state_dict().items()}
    assert list(within) == list(before)  # what checkpoints hold is smaller, and nothing more
    assert sum(within[name] != before[name] for name in before) == 1
    assert {name: weights.shape for name, weights in model.state_dict().items()} == before
    assert all(parameter.requires_grad for parameter in model.parameters())
