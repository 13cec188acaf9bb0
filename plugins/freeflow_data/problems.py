"""What is wrong with a data set: named, counted, then refused or skipped."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import final

from freeflow_core.errors import ConfigError
from freeflow_data.config import OnError

_log = logging.getLogger("freeflow")
_SHOWN = 3


@final
class Problems:
    """Collects what cannot be used, kind by kind.

    Args:
        where: the data as a user knows them, such as ``"The image folder photos"``.
        unit: what is counted, in the plural.
    """

    def __init__(self, where: str, unit: str = "images") -> None:
        self.where = where
        self._unit = unit
        self._count = 0
        self._kinds: list[str] = []

    def add(self, kind: str, names: Iterable[str], count: int | None = None) -> None:
        """``names`` share one ``kind`` of problem, a phrase such as ``"without a label"``; each kind is given once.

        ``count`` says how many there are where the names describe all of them together.
        """
        listed = list(names)
        number = len(listed) if count is None else count
        if number:
            self._count += number
            more = f" and {len(listed) - _SHOWN:,} more" if len(listed) > _SHOWN else ""
            self._kinds.append(f"{kind}: {number:,} ({', '.join(listed[:_SHOWN])}{more})")

    def settle(self, on_error: OnError, total: int, advice: str) -> None:
        """Refuse what was found, or say on one line what is left out. Silent when nothing was found.

        Args:
            on_error: ``"refuse"`` or ``"skip"``.
            total: how many there were to look at.
            advice: what to do about it, one sentence.

        Raises:
            ConfigError: something was found and is not to be skipped, or nothing would be left.
        """
        if not self._count:
            return
        kinds = "; ".join(self._kinds)
        found = f"{self.where}: {self._count:,} of {total:,} {self._unit} cannot be used: {kinds}."
        if self._count >= total:
            raise ConfigError(f"{found} Nothing is left. {advice}")
        if on_error == "refuse":
            raise ConfigError(f"{found} {advice} To leave them out, set on_error: skip.")
        _log.warning("%s They are left out.", found)
