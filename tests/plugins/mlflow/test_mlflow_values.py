"""Addresses, names and parameters, without MLflow."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from freeflow_mlflow.description import MAX_PARAMETER, parameters, safe_name
from freeflow_mlflow.tracker import artifact_location, tracking_uri, view_hint
from hypothesis import given, settings
from hypothesis import strategies as st

from freeflow_core.tracking import redact


def test_configured_address_then_environment_then_next_to_the_run(tmp_path, monkeypatch):
    run_folder = tmp_path / "runs" / "a"
    assert tracking_uri(None, run_folder) == f"sqlite:///{(tmp_path / 'runs' / 'mlflow.db').as_posix()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert tracking_uri(None, run_folder) == "http://environment"
    assert tracking_uri("http://configured", run_folder) == "http://configured"
    assert artifact_location(f"sqlite:///{tmp_path}/mlflow.db") == (tmp_path / "mlartifacts").as_uri()
    assert artifact_location("http://server:5000") is None
    assert view_hint("http://u:p@server/", "1", "r") == "http://***@server/#/experiments/1/runs/r"
    command, page = view_hint("sqlite:///a.db", "1", "r").split(", then ")
    assert (command, page.partition("#")[2]) == (
        "mlflow ui --backend-store-uri sqlite:///a.db",
        "/experiments/1/runs/r",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:pass@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://me:a%40b@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("http://host/a@b", "http://host/a@b"),
        ("a: 'http://u:p@h'\nb: x@y", "a: 'http://***@h'\nb: x@y"),
    ],
)
def test_credentials_are_masked(text, expected):
    assert redact(text) == expected


def test_parameters_are_flat_and_written_as_in_the_configuration():
    config = {
        "name": "run",
        "teacher": {"name": "sit", "weight": 1.5, "path": None},
        "compile": False,
        "few_steps": [2, 4],
        "empty": [],
        "trackers": [{"name": "mlflow", "uri": "http://u:p@h"}],
    }
    assert parameters(config) == {
        "name": "run",
        "teacher.name": "sit",
        "teacher.weight": "1.5",
        "compile": "false",
        "few_steps": "[2, 4]",
        "empty": "[]",
        "trackers.0.name": "mlflow",
        "trackers.0.uri": "http://***@h",
    }


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=300), st.text(max_size=20), max_size=3))
def test_every_name_fits_mlflow(config):
    for name, value in parameters({"a": config, "b": dict.fromkeys(config, "x" * 7000)}).items():
        assert re.fullmatch(r"[A-Za-z0-9_\-. /]{1,250}", name)
        assert len(value) <= MAX_PARAMETER


@given(st.text())
def test_names_never_climb_out_of_a_folder(name):
    parts = safe_name(name).split("/")
    assert ".." not in parts
    assert parts[0]
    assert safe_name(safe_name(name)) == safe_name(name)


def test_listing_needs_neither_torch_nor_mlflow():
    script = (
        "import sys, typer, freeflow_mlflow.plugin as p, freeflow_mlflow.config\n"
        "app = typer.Typer(); p.freeflow_commands(app); p.freeflow_trackers()\n"
        "assert not {'torch', 'mlflow', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=Path(__file__).parent)
