"""Every registered component keeps the contract of its kind."""

from __future__ import annotations

from collections.abc import Callable


def test_it_keeps_its_contract(run_check: Callable[[str, str, str], None], kind: str, name: str, check: str) -> None:
    run_check(kind, name, check)
