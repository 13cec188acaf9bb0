"""Starting weights of DiT and SiT: a network whose output, and whose blocks' contributions, are zero."""

from __future__ import annotations

import torch
from torch import nn

from freeflow_transformers.blocks import Block, FinalLayer
from freeflow_transformers.embeddings import LabelEmbedder, PatchEmbedder, ScalarEmbedder

_EMBEDDER_STD = 0.02
_MODULATION_STD = 0.1
_EXTRA_INPUTS = ("dt_embedder", "gw_embedder")


@torch.no_grad()
def initialise_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Fill every parameter, in order of construction.

    Xavier-uniform linear layers with zero biases; normal (0.02) label and scalar embedders; zero modulation
    (adaLN-Zero, Peebles & Xie 2022, section 3.2) and output layer; zero last layer of the inputs that a velocity
    network lacks.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, PatchEmbedder):
            nn.init.xavier_uniform_(module.proj.weight.flatten(1), generator=generator)
            assert module.proj.bias is not None
            nn.init.zeros_(module.proj.bias)
        elif isinstance(module, LabelEmbedder):
            nn.init.normal_(module.embedding_table.weight, std=_EMBEDDER_STD, generator=generator)
    for name, module in network.named_modules():
        if isinstance(module, ScalarEmbedder):
            layers = _linear_layers(module)
            for layer in layers:
                nn.init.normal_(layer.weight, std=_EMBEDDER_STD, generator=generator)
            if name in _EXTRA_INPUTS:
                nn.init.zeros_(layers[-1].weight)
        elif isinstance(module, (Block, FinalLayer)):
            for layer in _linear_layers(module.adaLN_modulation):
                nn.init.zeros_(layer.weight)
            if isinstance(module, FinalLayer):
                nn.init.zeros_(module.linear.weight)


@torch.no_grad()
def fill_with_random_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Replace the zero layers of fresh weights, so that every input matters and outputs are of order one.

    It makes no useful network, but one that costs what a trained one costs and whose outputs are not all zero.
    """
    for name, module in network.named_modules():
        if isinstance(module, (Block, FinalLayer)):
            for layer in _linear_layers(module.adaLN_modulation):
                nn.init.normal_(layer.weight, std=_MODULATION_STD, generator=generator)
            if isinstance(module, FinalLayer):
                nn.init.normal_(module.linear.weight, std=module.linear.in_features**-0.5, generator=generator)
        elif isinstance(module, ScalarEmbedder) and name in _EXTRA_INPUTS:
            nn.init.normal_(_linear_layers(module)[-1].weight, std=_EMBEDDER_STD, generator=generator)


def _linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
