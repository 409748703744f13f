"""Translate weights between Hugging Face's names and ours, and the sentence order head."""

import re
from typing import TypeAlias

import torch
from torch import Tensor

StateDict: TypeAlias = dict[str, Tensor]

# Ours -> Hugging Face's, for the weight and the bias of each module.
EMBEDDINGS = {
    "_token_embeddings": "word_embeddings",
    "_position_embeddings": "position_embeddings",
    "_segment_embeddings": "token_type_embeddings",
    "_layer_norm": "LayerNorm",
}
LAYER = {
    "_multihead_attention._qkv": "attention.self.*",  # our wide matrix is three narrow ones there
    "_multihead_attention._output": "attention.output.dense",
    "_multihead_attention._layer_norm": "attention.output.LayerNorm",
    "_feedforward._expand": "intermediate.dense",
    "_feedforward._contract": "output.dense",
    "_feedforward._layer_norm": "output.LayerNorm",
}
HEADS = {
    "_mlm_head._dense": "cls.predictions.transform.dense",
    "_mlm_head._layer_norm": "cls.predictions.transform.LayerNorm",
    "_mlm_head._decoder": "cls.predictions",  # its weight is the token embeddings
    "_classifier_head._dense": "bert.pooler.dense",
    "_classifier_head._output": "classifier",
}
NARROW = ("query", "key", "value")
TIED = "_mlm_head._decoder.weight"
# Our one logit z says "swapped"; Hugging Face has two logits, for "in order" and for "swapped".
# The softmax of (-z/2, z/2) is the sigmoid of z.
OUR_SOP, THEIR_SOP = "_classifier_head._output", "cls.seq_relationship"


def to_hf(state: StateDict) -> StateDict:
    """Weights under Hugging Face's names."""
    is_pretraining = TIED in state
    weights: StateDict = {}
    for ours, theirs in their_names(state).items():
        if ours == TIED or ours not in state:
            continue
        tensor = state[ours]
        if is_pretraining and ours.startswith(OUR_SOP):
            weights[ours.replace(OUR_SOP, THEIR_SOP)] = torch.cat([-tensor / 2, tensor / 2])
        elif "*" in theirs:
            for part, narrow in zip(NARROW, tensor.chunk(3), strict=True):
                weights[theirs.replace("*", part)] = narrow.clone()  # safetensors stores no views
        else:
            weights[theirs] = tensor
    return weights


def from_hf(weights: StateDict) -> StateDict:
    """Weights under our names; what our models have no place for is left out."""
    weights = {_modern_name(name): tensor for name, tensor in weights.items()}
    state: StateDict = {}
    for ours, theirs in their_names(weights).items():
        narrow = [theirs.replace("*", part) for part in NARROW] if "*" in theirs else [theirs]
        if all(name in weights for name in narrow):
            state[ours] = torch.cat([weights[name] for name in narrow])
    embeddings = weights.get("bert.embeddings.word_embeddings.weight")
    if "cls.predictions.bias" in weights and embeddings is not None:
        state[TIED] = embeddings
    for kind in ("weight", "bias"):
        if (pair := weights.get(f"{THEIR_SOP}.{kind}")) is not None:
            state[f"{OUR_SOP}.{kind}"] = pair[1:] - pair[:1]
    return state


def their_names(state: StateDict) -> dict[str, str]:
    """Our name -> their name of every tensor that a model with the layers of ``state`` may have."""
    numbers = {int(match[1]) for name in state if (match := re.search(r"\.(?:_layers|layer)\.(\d+)\.", name))}
    modules = {
        f"_backbone._embeddings.{ours}": f"bert.embeddings.{theirs}" for ours, theirs in EMBEDDINGS.items()
    }
    for i in sorted(numbers):
        for ours, theirs in LAYER.items():
            modules[f"_backbone._layers.{i}.{ours}"] = f"bert.encoder.layer.{i}.{theirs}"
    modules |= HEADS
    return {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }


def _modern_name(name: str) -> str:
    """Their name as it is today: with the encoder's prefix, and without TensorFlow's names in layer norms."""
    if not name.startswith(("bert.", "cls.", "classifier.")):
        name = f"bert.{name}"  # a bare encoder
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
