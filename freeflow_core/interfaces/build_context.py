"""The surroundings in which a component is built."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces.codec import Codec
from freeflow_core.interfaces.source import Source
from freeflow_core.interfaces.teacher import Teacher


def _no_weights(name: str) -> Path:
    raise ConfigError(f"The published weights {name!r} are asked for outside a run, where nothing fetches them.")


@dataclass(frozen=True)
class BuildContext:
    """What a component may know of its surroundings when it is built.

    Args:
        device: where networks will run.
        seed: the run's seed, for weight initialisation.
        teacher: the built teacher, or None (training from data, or building the teacher itself).
        source: the built training source, or None.
        precision: ``float32``, ``bf16`` (autocast over float32 weights) or ``float64``.
        weights: ``weights(name)`` is the path of published weights, a :class:`freeflow_core.plugin.WeightFile` by
            name, fetched into the cache on first use.
        component: ``component(kind, name, options)`` builds another component, so that no plugin imports another.
        trusted: the user lets this session run code that a configuration names; see :meth:`require_trust`.
        codec: the run's, for objectives that look at images; or None.
    """

    device: torch.device
    seed: int
    component: Callable[[str, str, dict[str, Any]], Any]
    teacher: Teacher | None = None
    source: Source | None = None
    precision: str = "float32"
    weights: Callable[[str], Path] = _no_weights
    trusted: bool = False
    codec: Codec | None = None

    def require_trust(self, what: str, action: str) -> None:
        """Call before running code that a configuration names, and before importing or reading any of it.

        A configuration may be somebody else's, the one stored with their weights included, so the permission belongs
        to the session. ``what`` asks for it, e.g. ``"The teacher 'callable'"``; ``action`` is what would happen, e.g.
        ``"import my_module and call its function"``. Raises ``ConfigError`` where the user has not allowed it.
        """
        if not self.trusted:
            raise ConfigError(
                f"{what} would {action}, which can do anything that you can do on this machine. If you trust that "
                "code, say so: `freeflow --trust ...`, or in Python manager=Manager.load(trust=True)."
            )
