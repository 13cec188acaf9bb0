"""Runs contracts without pytest, for ``freeflow plugins check``."""

from __future__ import annotations

import time
import unittest
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from freeflow_core.errors import FreeflowError
from freeflow_core.plugin import Registry
from freeflow_core.testing.contracts.base import ComponentContract, ContractFailure

_PREFIX = "test_"
_BUILDS = ComponentContract.test_builds_from_its_configuration.__name__


@dataclass(frozen=True)
class CheckResult:
    """One check: its name in words, how it ended, and the reason of a failure or a skip."""

    check: str
    status: Literal["ok", "failed", "skipped"]
    message: str = ""
    seconds: float = 0.0


def check_names(contract: type[ComponentContract]) -> list[str]:
    """Methods that are checks, base class first, in the order they are written."""
    found: dict[str, None] = {}
    for base in reversed(contract.__mro__):
        found |= {name: None for name in vars(base) if name.startswith(_PREFIX)}
    return [name for name in found if callable(getattr(contract, name, None))]


def run_contract(
    contract: type[ComponentContract],
    *,
    component: str,
    options: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
    only: Collection[str] | None = None,
    **attributes: Any,
) -> Iterator[CheckResult]:
    """Run all checks of a contract on one component, each on an object built anew.

    When it cannot be built at all, the checks that need it are skipped.

    Args:
        only: names of the checks to run; None: all.
        attributes: class attributes of the contract to set, such as ``teacher`` of a student's.
    """
    values = {"component": component, "options": dict(options or {}), "registry": registry, **attributes}
    own: type[ComponentContract] = type(contract.__name__, (contract,), values)
    names = [name for name in check_names(own) if only is None or name in only]
    names.sort(key=lambda name: name != _BUILDS)  # stable: the others keep their order
    built = True
    for name in names:
        if not built and not name.startswith("test_configuration") and name != "test_every_option_is_described":
            yield CheckResult(_words(name), "skipped", "it could not be built")
            continue
        result = _run(own, name)
        built = built and not (name == _BUILDS and result.status != "ok")
        yield result


def _run(contract: type[ComponentContract], name: str) -> CheckResult:
    began = time.perf_counter()
    status: Literal["ok", "failed", "skipped"] = "ok"
    message = ""
    try:
        check: Callable[[], None] = getattr(contract(), name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check()
    except unittest.SkipTest as reason:
        status, message = "skipped", str(reason)
    except (ContractFailure, FreeflowError) as error:
        status, message = "failed", str(error)
        if repr(contract.component) not in message:
            message = f"The {contract.kind} {contract.component!r}: {message}"
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        status, message = "failed", f"The {contract.kind} {contract.component!r} raised {problem}"
    return CheckResult(_words(name), status, message, time.perf_counter() - began)


def _words(name: str) -> str:
    return name.removeprefix(_PREFIX).replace("_", " ")
