"""Libraries whose import fails, or says much, beside a torch that their compiled operators were not built for.

Others that plugins stand on (clean-fid, diffusers) import torchvision and torchao on the way. Call
:func:`ensure_torchvision_ops` before importing one of them.
"""

import contextlib
import logging
from typing import Any

import torch

from freeflow_core.errors import ConfigError


def ensure_torchvision_ops() -> None:
    """Mend the one known failure of ``import torchvision``; do nothing when it works, or is not installed.

    A torchvision built for CUDA cannot load its compiled operators beside a CPU-only torch. It goes on without them,
    and then its import fails while it registers a shape rule for ``torchvision::nms``, an operator that does not
    exist. Declaring the operators, with no implementation, lets the import finish; nothing here ever calls them.

    Raises:
        RuntimeError: torchvision fails in another way.
    """
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in ("torchvision::nms", "torchvision::qnms"):
            with contextlib.suppress(RuntimeError):  # somebody declared it already
                torch.library.define(name, "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def silence_torchao() -> None:
    """It, and diffusers of it, warns of kernels that this machine cannot load; whoever needs one gets an error."""
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)


def diffusers_class(name: str, who: str, extra: str) -> Any:
    """A class of diffusers, whose import takes seconds.

    Raises ``ConfigError`` when it is not to be had: ``who`` needs it, and the ``extra`` of this package installs it.
    """
    ensure_torchvision_ops()
    silence_torchao()
    try:
        import diffusers

        return getattr(diffusers, name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{who} needs a diffusers with {name} ({error}). Install it with: pip install 'freeflow-distill[{extra}]'"
        ) from error
