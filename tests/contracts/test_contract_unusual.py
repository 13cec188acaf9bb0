"""Correct components that are unlike ours are not refused; what is not to be checked is waived with a reason."""

from pathlib import Path

import pytest

from freeflow_core.errors import ConfigError
from freeflow_core.plugin import Manager, Registry
from freeflow_core.testing import CONTRACTS, TeacherContract, run_contract

PLUGIN = Path(__file__).with_name("unusual.py")
WAYS = {
    "teacher": ("relu", "complex", "channels-last", "cached", "half-open", "labels-on-the-host"),
    "student": ("plain", "batch-norm", "group-norm", "dropout", "zero"),
    "sampler": ("float64-inside",),
}


@pytest.fixture(scope="module")
def registry():
    return Registry(Manager.load([PLUGIN]))


@pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind, ways in WAYS.items() for way in ways])
def test_a_correct_component_is_not_refused(registry, kind, way):
    found = run_contract(CONTRACTS[kind], component=f"unusual-{kind}", options={"way": way}, registry=registry)
    assert [result for result in found if result.status == "failed"] == []


def test_a_check_is_waived_with_a_reason(registry):
    waived = {"velocity is deterministic": "it draws by itself"}
    only = {"test_velocity_is_deterministic"}
    (found,) = run_contract(TeacherContract, component="unusual-teacher", registry=registry, only=only, waived=waived)
    assert (found.status, found.message) == ("skipped", "waived: it draws by itself")
    for wrong in ({"velocity is determined": "because"}, {"velocity is deterministic": " "}):
        with pytest.raises(ConfigError):
            list(run_contract(TeacherContract, component="unusual-teacher", registry=registry, waived=wrong))
