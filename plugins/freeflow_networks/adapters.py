"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on a frozen network, through peft."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from freeflow_core.errors import ConfigError
from freeflow_core.torchvision_ops import ensure_torchvision_ops

_NAME = "default"


def add_adapters(network: nn.Module, rank: int, alpha: float, modules: str | None, seed: int) -> list[str]:
    """Put adapters of ``rank`` on the linear and convolutional layers of ``network``; the paths of these.

    What they add, alpha / rank B A, is 0 at first. They are of 32 bits or more, whatever the layers are.

    Args:
        modules: regular expression that whole paths of layers match; None: all of them.
        seed: of A.

    Raises:
        ConfigError: peft is not installed; no such layer.
    """
    ensure_torchvision_ops()
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"student.lora_rank needs peft ({error}). Install it with: pip install 'freeflow-distill[lora]', or leave "
            "the option out to train all weights."
        ) from error
    layers = dict(_layers(network))
    try:
        pattern = re.compile(modules or ".*")
    except re.error as error:
        raise ConfigError(f"student.lora_modules={modules!r} is no regular expression: {error}.") from None
    chosen = [path for path in layers if pattern.fullmatch(path)]
    if not chosen:
        raise ConfigError(
            f"student.lora_modules={modules!r} matches none of the {len(layers)} linear and convolutional layers of "
            f"the teacher's network{', such as ' + ', '.join(list(layers)[:5]) if layers else ''}. It must match whole "
            "paths, such as '.*attn.*'."
        )
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules="|".join(map(re.escape, chosen)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, network, adapter_name=_NAME)
    for name, parameter in network.named_parameters():
        if _is_adapter(name):
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return chosen


def merged_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The state dict that ``network`` had without adapters, with what they learnt added to its weights."""
    state = network.state_dict()
    merged = {name: tensor for name, tensor in state.items() if not _is_adapter(name)}
    for name in [name for name in state if name.endswith(f".lora_A.{_NAME}.weight")]:
        path = name.removesuffix(f".lora_A.{_NAME}.weight")
        layer: Any = network.get_submodule(path)
        added, weight = layer.get_delta_weight(_NAME), merged[f"{path}.base_layer.weight"]
        merged[f"{path}.base_layer.weight"] = (weight.to(added.dtype) + added).to(weight.dtype)
    return {name.replace(".base_layer.", "."): tensor for name, tensor in merged.items()}


def _is_adapter(name: str) -> bool:
    return f".{_NAME}." in name and ".lora_" in f".{name}"


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers that can be adapted.

    Those inside torch's attention are read past their ``forward``; a weight that is computed (weight or spectral norm)
    is nothing that an adapter could be merged into.
    """
    for path, module in network.named_modules():
        inside = isinstance(network.get_submodule(path.rpartition(".")[0]), nn.MultiheadAttention)
        grouped = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1
        computed = "weight" not in dict(module.named_parameters(recurse=False))
        if path and not inside and not computed and (isinstance(module, nn.Linear) or grouped):
            yield path, module
