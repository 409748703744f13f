"""What we write, transformers loads with no code of ours; what transformers writes, we finetune."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
)
from transformers import BertModel as HfBertModel

from receiptbert import BertFinetuneModel, BertModel, WordpieceTokenizer, load_weights
from receiptbert.errors import UserError
from receiptbert.hf_format import (
    load_encoder,
    read_shape,
    save_pretrained,
)
from receiptbert.saved_classifier import load_classifier
from tests.conftest import Make
from tests.small_models import change_json, change_weights, shaken


@pytest.fixture
def pretrained(pretrain_model: Make, tokenizer: WordpieceTokenizer, tmp_path: Path) -> tuple[BertModel, Path]:
    model: BertModel = pretrain_model()
    shaken(model, 0.3)
    save_pretrained(model, tokenizer, tmp_path / "pretrained")
    return model, tmp_path / "pretrained"


def load_without_warnings(auto_class: Any, folder: Path) -> Any:
    model, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert not info["unexpected_keys"] or auto_class is AutoModelForMaskedLM  # which has one head of two
    return model.eval()


def test_pretrained_checkpoint_gives_our_logits_in_transformers(pretrained: tuple[BertModel, Path]) -> None:
    model, folder = pretrained
    theirs = load_without_warnings(AutoModelForPreTraining, folder)
    assert theirs.config.architectures == ["BertForPreTraining"]
    mlm_only = load_without_warnings(AutoModelForMaskedLM, folder)
    ids = torch.randint(5, 50, (3, 9))
    types = torch.randint(0, 2, (3, 9))
    with torch.no_grad():
        hidden = model.backbone(ids, None, types)
        mlm, sop = model._mlm_head.logits(hidden), model._classifier_head(hidden)
        output = theirs(ids, token_type_ids=types)
        torch.testing.assert_close(output.prediction_logits, mlm, atol=1e-5, rtol=0)
        torch.testing.assert_close(mlm_only(ids, token_type_ids=types).logits, mlm, atol=1e-5, rtol=0)
        probability = output.seq_relationship_logits.softmax(dim=-1)[:, 1:]
        torch.testing.assert_close(probability, sop.sigmoid(), atol=1e-5, rtol=0)


def test_saving_and_loading_again_changes_nothing(pretrained: tuple[BertModel, Path]) -> None:
    model, folder = pretrained
    other = BertModel(**read_shape(folder).kwargs())
    assert sorted(load_weights(other, folder)) == sorted(model.state_dict())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, atol=1e-7, rtol=1e-6)


def test_equal_models_are_equal_bytes(
    pretrained: tuple[BertModel, Path], tokenizer: WordpieceTokenizer, tmp_path: Path
) -> None:
    model, folder = pretrained
    save_pretrained(model, tokenizer, tmp_path / "again")
    files = sorted(path.name for path in folder.iterdir())
    assert files == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_the_temperature_survives_transformers(
    finetune_model: Make, tokenizer: WordpieceTokenizer, tmp_path: Path
) -> None:
    save_pretrained(finetune_model(), tokenizer, tmp_path, ["а", "б", "в"], temperature=1.2345)
    assert load_classifier(tmp_path).temperature == 1.2345
    # Who trains it further, or only renames a class, saves it with transformers.
    theirs = load_without_warnings(AutoModelForSequenceClassification, tmp_path)
    assert theirs.config.architectures == ["BertForSequenceClassification"]
    assert theirs.config.label2id == {"а": 0, "б": 1, "в": 2}
    theirs.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    assert load_classifier(tmp_path / "again").temperature == theirs.config.softmax_temperature == 1.2345


def test_a_checkpoint_without_temperature_and_labels_has_them(checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    change_json(path, "softmax_temperature", "corpus_labels")
    without = path.read_text()
    found = load_classifier(checkpoint)
    assert found.temperature == 1.0
    assert found.labels == found.names
    for bad in ("0", "1e-320", "1" + "0" * 400, "-1", '"warm"', "null", "NaN", "true"):
        path.write_text(f'{without[:-1]}, "softmax_temperature": {bad}}}')
        with pytest.raises(UserError, match=r"softmax_temperature = .* must be a number between 0"):
            load_classifier(checkpoint)


def test_the_last_layer_of_another_classifier_is_not_taken(
    finetune_model: Make, tokenizer: WordpieceTokenizer, tmp_path: Path
) -> None:
    other, model = finetune_model(), finetune_model()
    shaken(other, 0.3)
    save_pretrained(other, tokenizer, tmp_path, ["a", "b", "c"])
    fresh = model._classifier_head._output.weight.clone()
    load_encoder(model, tmp_path)
    assert torch.equal(model._classifier_head._output.weight, fresh)
    assert torch.equal(model._classifier_head._dense.weight, other._classifier_head._dense.weight)


def test_encoder_comes_from_the_pretrained_checkpoint(
    pretrained: tuple[BertModel, Path], finetune_model: Make
) -> None:
    source, folder = pretrained
    model: BertFinetuneModel = finetune_model()
    fresh_output = model._classifier_head._output.weight.clone()
    load_encoder(model, folder)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, source.backbone.state_dict()[name]), name
    assert torch.equal(model._classifier_head._dense.weight, source._classifier_head._dense.weight)
    assert torch.equal(model._classifier_head._output.weight, fresh_output)


@pytest.mark.parametrize(
    "hf_class", [BertForMaskedLM, BertForPreTraining, BertForSequenceClassification, HfBertModel]
)
def test_any_hugging_face_bert_can_be_finetuned(hf_class: Any, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=30,
    )
    theirs = hf_class(config).eval()
    theirs.save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    assert (shape.eps, shape.act_func, shape.intermediate_size) == (1e-12, "gelu", 20)
    # As old ones leave out what is as in the paper.
    change_json(tmp_path / "config.json", "hidden_act", "layer_norm_eps", "type_vocab_size")
    assert read_shape(tmp_path) == shape
    ours = BertFinetuneModel(**shape.kwargs(), num_classes=2).eval()
    load_encoder(ours, tmp_path)
    ids = torch.randint(0, 60, (2, 7))
    encoder = getattr(theirs, "bert", theirs)
    torch.testing.assert_close(ours.backbone(ids), encoder(ids).last_hidden_state, atol=1e-6, rtol=1e-5)


def test_tensorflow_names_of_layer_norms_are_understood(
    pretrained: tuple[BertModel, Path], finetune_model: Make
) -> None:
    source, folder = pretrained
    with change_weights(folder) as weights:
        for name, old in (("weight", "gamma"), ("bias", "beta")):
            for key in [key for key in weights if key.endswith(f"LayerNorm.{name}")]:
                weights[key.removesuffix(name) + old] = weights.pop(key)
    model: BertFinetuneModel = finetune_model()
    load_encoder(model, folder)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, source.backbone.state_dict()[name]), name


def test_load_weights_reads_a_state_dict(pretrain_model: Make, tmp_path: Path) -> None:
    model = pretrain_model()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = shaken(pretrain_model(), 0.3)
    assert sorted(load_weights(other, tmp_path / "weights.pt")) == sorted(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_load_weights_skips_other_shapes(pretrained: tuple[BertModel, Path], finetune_model: Make) -> None:
    _, folder = pretrained
    found = load_weights(finetune_model(max_seqlen=20), folder)
    assert "_backbone._embeddings._position_embeddings.weight" not in found
    assert "_backbone._embeddings._token_embeddings.weight" in found


def test_checkpoints_that_cannot_be_used_are_refused(
    pretrained: tuple[BertModel, Path], finetune_model: Make
) -> None:
    """Besides those of test_refusals_of_outputs.py."""
    _, folder = pretrained
    with pytest.raises(UserError, match=r"lacks 1 weights .* bert\.embeddings\.position_embeddings"):
        load_encoder(finetune_model(max_seqlen=20), folder)
    with pytest.raises(UserError, match="has more layers than"):
        load_encoder(finetune_model(num_hidden_layers=1), folder)
    config = json.loads((folder / "config.json").read_text())
    for change, message in [
        ({"hidden_act": ["gelu"]}, r"activation \['gelu'\]"),
        ({"position_embedding_type": "relative_key"}, "positions are 'relative_key'; only 'absolute'"),
        ({"is_decoder": True}, "attend to earlier ones alone"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps is '1e-12'; it must be a number"),
    ]:
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=message):
            read_shape(folder)
    (folder / "config.json").write_text('{"model_type": "bert", "vocab_size": 9}')
    with pytest.raises(UserError, match="lacks max_position_embeddings"):
        read_shape(folder)
