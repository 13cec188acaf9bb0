import pytest
from run_helpers import TINY

from freeflow_core.config import load_run_config


@pytest.fixture(scope="session")
def tiny(registry):
    """``tiny("a.b=c", ...)`` resolves the small run with changes."""

    def make(*assignments, command="distill", **overrides):
        return load_run_config(registry, command, overrides={**TINY, **overrides}, assignments=assignments)

    return make


@pytest.fixture
def output(tmp_path):
    return tmp_path / "run"
