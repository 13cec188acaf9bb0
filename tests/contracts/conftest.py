"""Every registered component against the contract of its kind, one test a check."""

import pytest
from contract_table import CASES, Case

from freeflow_core.plugin import Manager, Registry
from freeflow_core.testing import CONTRACTS, check_names

REGISTRY = Registry(Manager.load(trust=True))
_MADE: dict[tuple[str, str], Case] = {}


def pytest_generate_tests(metafunc):
    """``test_it_keeps_its_contract(kind, name, check)`` becomes a test for each component and check."""
    if "check" in metafunc.fixturenames and "run_check" in metafunc.fixturenames:
        cases = [
            (kind, name, check)
            for kind, contract in CONTRACTS.items()
            for name in REGISTRY.components(kind)
            for check in check_names(contract)
        ]
        ids = [f"{kind}-{name}-{check[5:]}" for kind, name, check in cases]
        metafunc.parametrize(("kind", "name", "check"), cases, ids=ids)


@pytest.fixture(scope="session")
def case_of(tmp_path_factory):
    """The options of a component, its files made once."""

    def find(kind, name):
        key = (kind, name)
        if key not in _MADE:
            _MADE[key] = CASES[key](tmp_path_factory.mktemp(f"{kind}-{name}")) if key in CASES else Case()
        return _MADE[key]

    return find


@pytest.fixture
def run_check(case_of):
    """Run one check of one component."""

    def run(kind, name, check):
        case = case_of(kind, name)
        values = {"component": name, "options": case.options, "registry": REGISTRY, **case.attributes}
        getattr(type("Contract", (CONTRACTS[kind],), values)(), check)()

    return run
