"""What is wrong with a data set: named, counted, then refused or skipped."""

from __future__ import annotations

import logging
from collections import Counter
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
        self._counts: Counter[str] = Counter()
        self._names: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, kind: str, names: Iterable[str], count: int | None = None) -> None:
        """``names`` share one ``kind`` of problem, a phrase such as ``"without a label"``.

        ``count`` says how many there are where the names describe all of them together.
        """
        listed = list(names)
        number = len(listed) if count is None else count
        if number:
            self._counts[kind] += number
            self._names.setdefault(kind, []).extend(listed)

    def settle(self, on_error: OnError, total: int, advice: str) -> None:
        """Refuse what was found, or say on one line what is left out. Silent when nothing was found.

        Args:
            on_error: ``"refuse"`` or ``"skip"``.
            total: how many there were to look at.
            advice: what to do about it, one sentence.

        Raises:
            ConfigError: something was found and is not to be skipped, or nothing would be left.
        """
        if not len(self):
            return
        found = f"{self.where}: {len(self):,} of {total:,} {self._unit} cannot be used: {self.describe()}."
        if len(self) >= total:
            raise ConfigError(f"{found} Nothing is left. {advice}")
        if on_error == "refuse":
            raise ConfigError(f"{found} {advice} To leave them out, set on_error: skip.")
        _log.warning("%s They are left out.", found)

    def describe(self) -> str:
        """``damaged: 2 (a.png, b.png); without a label: 1 (c.png)``."""
        return "; ".join(f"{kind}: {count:,} ({_shorten(self._names[kind])})" for kind, count in self._counts.items())


def _shorten(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
