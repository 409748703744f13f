"""How the weights of a new model are drawn: as in the code released by Devlin et al. (2019; the paper does
not say), with the assignment's ``init_layer``."""

from typing import cast

from torch import nn


def init_layer(
    layer: nn.Linear | nn.Embedding, initializer_range: float = 0.02, zero_out_bias: bool = True
) -> None:
    """Initialize as BERT does: normal weights truncated at two standard deviations, biases zero.

    Args:
        layer: a linear layer or an embedding matrix.
        initializer_range: standard deviation before truncation, which leaves 0.88 of it.
        zero_out_bias: True for linear layers, False for embeddings, which have no bias.
    """
    bound = 2 * initializer_range
    nn.init.trunc_normal_(layer.weight.data, std=initializer_range, a=-bound, b=bound)
    if zero_out_bias:
        cast(nn.Linear, layer).bias.data.zero_()


def linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer, initialized by ``init_layer``."""
    layer = nn.Linear(in_features, out_features)
    init_layer(layer)
    return layer


def embedding(num_embeddings: int, hidden_size: int) -> nn.Embedding:
    """An embedding matrix, initialized by ``init_layer``."""
    layer = nn.Embedding(num_embeddings, hidden_size)
    init_layer(layer, zero_out_bias=False)
    return layer
