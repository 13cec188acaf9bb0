"""Every registered source keeps the contract."""

from __future__ import annotations

from collections.abc import Callable

KIND = "source"


def test_it_keeps_its_contract(run_check: Callable[[str, str, str], None], name: str, check: str) -> None:
    run_check(KIND, name, check)
