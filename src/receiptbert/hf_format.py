"""Our checkpoints are Hugging Face checkpoints: names, shapes and the sentence order head translated.

A folder written here loads with ``AutoModelForPreTraining``, ``AutoModelForMaskedLM`` or
``AutoModelForSequenceClassification`` and ``AutoTokenizer``, and gives the same logits there (but for
sentence order, which has two there; their probabilities are the same).
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from receiptbert.encoder import BertShape
from receiptbert.errors import TAKE_AGAIN, UserError
from receiptbert.hf_names import OUR_SOP, StateDict, from_hf, their_names, to_hf
from receiptbert.json_files import read_json_object, write_json_object
from receiptbert.layers import ACTIVATIONS
from receiptbert.modeling import BertFinetuneModel, BertModel
from receiptbert.tokenization import WordpieceTokenizer

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
# To transformers, plain "temperature" is a setting of text generation, which it drops
# from a model's config on loading, and it refuses to save a config that has it.
TEMPERATURE = "softmax_temperature"
LABELS = "corpus_labels"

# Ours -> Hugging Face's, in config.json.
SHAPE = {
    "vocab_size": "vocab_size",
    "max_seqlen": "max_position_embeddings",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "intermediate_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "act_func": "hidden_act",
    "eps": "layer_norm_eps",
}
# What old checkpoints mean by leaving these out.
DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "position_embedding_type": "absolute",
}


def save_pretrained(
    model: BertModel | BertFinetuneModel,
    tokenizer: WordpieceTokenizer,
    folder: Path,
    label_names: list[str] | None = None,
    labels: list[str] | None = None,
    temperature: float = 1.0,
) -> None:
    """Write a Hugging Face checkpoint: config.json, model.safetensors and the tokenizer's files.

    Args:
        label_names: the classes of a ``BertFinetuneModel`` in the order of their ids.
        labels: what the corpus calls them, in the same order; None for the names.
        temperature: what its logits are to be divided by before the softmax.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = model.shape
    config: dict[str, Any] = {
        "architectures": [
            "BertForPreTraining" if isinstance(model, BertModel) else "BertForSequenceClassification"
        ],
        "model_type": "bert",
        **{theirs: getattr(shape, ours) for ours, theirs in SHAPE.items()},
        "type_vocab_size": 2,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }
    if label_names is not None:
        config["id2label"] = {str(number): name for number, name in enumerate(label_names)}
        config["label2id"] = {name: number for number, name in enumerate(label_names)}
        config["problem_type"] = "single_label_classification"
        config[LABELS] = labels or label_names
        config[TEMPERATURE] = temperature
    write_json_object(folder / CONFIG, config)
    # Not `save_file`: its files can be read by their owner alone, whatever the umask.
    (folder / WEIGHTS).write_bytes(save(to_hf(model.state_dict()), metadata={"format": "pt"}))
    tokenizer.save_pretrained(folder, max_seqlen=shape.max_seqlen)


def read_shape(folder: Path) -> BertShape:
    """The shape of a checkpoint's encoder.

    Raises:
        UserError: no BERT checkpoint, or one with parts that ours lacks.
    """
    return shape_of(read_config(folder), folder)


def shape_of(config: dict[str, Any], folder: Path) -> BertShape:
    """The shape that the ``config`` of the checkpoint ``folder`` tells, as ``read_shape`` does."""
    config = {**DEFAULTS, **config}
    if missing := [name for name in SHAPE.values() if name not in config]:
        raise UserError(f"{folder / CONFIG} lacks {missing[0]}; name a BERT checkpoint folder")
    if str(config["hidden_act"]) not in ACTIVATIONS:
        raise UserError(
            f"{folder}: activation {config['hidden_act']} is not among {', '.join(ACTIVATIONS)}; choose "
            "another"
        )
    if (kind := config["position_embedding_type"]) != "absolute":
        raise UserError(f"{folder}: positions are {kind!r}; only 'absolute' ones can be used; choose another")
    if type(config["layer_norm_eps"]) is not float:
        eps = config["layer_norm_eps"]
        raise UserError(f"{folder / CONFIG}: layer_norm_eps is {eps!r}; it must be a number such as 1e-12")
    if config.get("is_decoder"):
        raise UserError(f"{folder}: its tokens attend to earlier ones alone (is_decoder); name an encoder")
    if config["type_vocab_size"] != 2:
        raise UserError(
            f"{folder}: {config['type_vocab_size']} segment embeddings; only 2 can be used; choose another"
        )
    if config.get("quantization_config"):
        raise UserError(f"{folder}: its weights are quantized; name a checkpoint whose weights are not")
    shape = BertShape(**{ours: config[theirs] for ours, theirs in SHAPE.items()})
    for ours, size in shape.kwargs().items():
        if ours not in ("act_func", "eps") and (type(size) is not int or size < 1):
            raise UserError(f"{folder / CONFIG}: {SHAPE[ours]} is {size!r}; it must be a whole number from 1")
    if shape.hidden_size % shape.num_attention_heads:
        raise UserError(
            f"{folder / CONFIG}: hidden_size is not a multiple of num_attention_heads; correct it"
        )
    return shape


def load_tokenizer(folder: Path, shape: BertShape) -> WordpieceTokenizer:
    """The tokenizer of a checkpoint whose model has this ``shape``.

    Raises:
        UserError: there is none, or it has ids for which the model has no embeddings.
    """
    tokenizer = WordpieceTokenizer.from_pretrained(folder)
    if tokenizer.vocab_size > shape.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {shape.vocab_size}; "
            "take both from one checkpoint"
        )
    return tokenizer


def load_weights(self: nn.Module, path: str | Path) -> list[str]:
    """Copy into a model all weights of a checkpoint that it has under the same name and shape.

    Args:
        self: any of our models.
        path: a checkpoint folder (ours or any Hugging Face BERT), or a file with a model's own
            ``state_dict`` saved by ``torch.save``.

    Returns:
        the names of the weights found, as in ``self.state_dict()``; those of other names or shapes are
        skipped, and so are integers.

    Raises:
        UserError: the folder has no intact model.safetensors, or the file holds no ``state_dict``.
        OSError: there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        return _copy_weights(self, from_hf(read_weights(path)))
    try:
        weights = dict(torch.load(path, weights_only=True, map_location="cpu"))
    except OSError:
        raise
    except Exception as error:  # from zip, from pickle, or not a state_dict
        reason = str(error).split(". ", maxsplit=1)[0]
        raise UserError(f"{path} holds no state_dict saved by torch.save ({reason})") from None
    return _copy_weights(self, weights)


def _copy_weights(model: nn.Module, weights: StateDict) -> list[str]:
    state = model.state_dict()
    found = [
        name
        for name, tensor in state.items()
        # Integers are weights that some tool has quantized, in units of its own.
        if name in weights and weights[name].shape == tensor.shape and weights[name].is_floating_point()
    ]
    with torch.no_grad():
        for name in found:
            state[name].copy_(weights[name])
    return found


def load_encoder(model: BertFinetuneModel, folder: Path) -> None:
    """Load the encoder of a pretrained checkpoint and, if it has one, its head except the last layer.

    Raises:
        UserError: the checkpoint lacks weights of the encoder, has them in another shape, or has more layers.
    """
    weights = from_hf(read_weights(folder))
    # The last layer answers another question, even where its shape fits by chance.
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(OUR_SOP)}
    copy_all(model, weights, folder, spared=("_classifier_head.",))


def copy_all(model: nn.Module, weights: StateDict, folder: Path, spared: tuple[str, ...] = ()) -> None:
    """Copy all weights of ``model``, except that names which begin with ``spared`` may be missing.

    Args:
        weights: of the checkpoint ``folder``, under our names.

    Raises:
        UserError: some are missing or have another shape, or there are more layers.
    """
    ours = model.state_dict().keys()
    if any(name.startswith("_backbone.") for name in weights.keys() - ours):
        raise UserError(f"{folder / WEIGHTS} has more layers than {CONFIG} promises; {TAKE_AGAIN}")
    found = _copy_weights(model, weights)
    missing = [name for name in ours - set(found) if not name.startswith(spared)]
    if missing:
        theirs = their_names(model.state_dict())[min(missing)]
        raise UserError(
            f"{folder / WEIGHTS} lacks {len(missing)} weights of the shape that {CONFIG} promises, "
            f"{theirs} among them; {TAKE_AGAIN}"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint.

    Raises:
        UserError: there is none, or it is not a BERT's.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; run `dvc repro`, or name a BERT checkpoint folder")
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder} holds no {CONFIG}; run `dvc repro`, or name a BERT checkpoint folder")
    config = read_json_object(folder / CONFIG, TAKE_AGAIN)
    if (kind := config.get("model_type")) != "bert":
        raise UserError(f"{folder} is a checkpoint of type {kind}; only bert can be used")
    return config


def read_weights(folder: Path) -> StateDict:
    """The weights of a checkpoint, under their own names.

    Raises:
        UserError: there are none, or their file is damaged.
    """
    try:
        (folder / WEIGHTS).open("rb").close()  # safetensors would not say that a file may not be read
        return load_file(folder / WEIGHTS)
    except FileNotFoundError:
        # A pickled pytorch_model.bin could run any code when it is loaded.
        raise UserError(f"{folder} holds no {WEIGHTS}; load it with transformers and save it again") from None
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} is damaged ({error}); {TAKE_AGAIN}") from None
