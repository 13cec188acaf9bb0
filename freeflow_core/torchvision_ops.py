"""Make ``import torchvision`` work beside a torch that its compiled operators were not built for.

Libraries that plugins stand on (clean-fid, diffusers) import torchvision on the way. Call
:func:`ensure_torchvision_ops` before importing one of them.
"""

from __future__ import annotations

import torch

_OPERATORS = ("torchvision::nms", "torchvision::qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def ensure_torchvision_ops() -> None:
    """Mend the one known failure of ``import torchvision``; do nothing when it works, or is not installed.

    A torchvision built for CUDA cannot load its compiled operators beside a CPU-only torch. It goes on without them,
    and then its import fails while it registers a shape rule for ``torchvision::nms``, an operator that does not
    exist. Declaring the operators, with no implementation, lets the import finish; nothing here ever calls them.
    Declaring an operator twice is an error, so the plain import is tried first, only this one failure is mended, and
    an operator that somebody declared already is left alone.

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
        for name in _OPERATORS:
            if not _is_declared(name):
                torch.library.define(name, _SCHEMA)


def _is_declared(name: str) -> bool:
    namespace, operator = name.split("::")
    try:
        getattr(getattr(torch.ops, namespace), operator)
    except AttributeError:
        return False
    return True
