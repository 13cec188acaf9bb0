"""The fault suite's first trials, so that it stays one that runs: `just test-faults` is the whole."""

from pathlib import Path

import pytest
from run_helpers import processes

HERE = Path(__file__).parent


@pytest.mark.timeout(1200)  # twenty seconds of work, on a machine that may be many times slower
def test_five_kills_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent))
    suite = processes(1, HERE / "run_faults.py", "--folder", tmp_path, "--only", "kill: checkpoint", "--count", "5")
    printed, _ = suite.communicate(timeout=1100)
    assert suite.returncode == 0, printed[-3000:]
    assert "5 trials, 5 good" in printed
