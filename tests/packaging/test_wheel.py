"""The wheel holds exactly our packages and their data, under the names we own."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {Path(p).name for p in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield path.name, {info.filename: info.file_size for info in archive.infolist()}, archive


def test_top_level_names(wheel):
    name, files, _ = wheel
    assert name.startswith("freeflow_distill-")
    top = {file.split("/")[0] for file in files}
    assert {t for t in top if not t.endswith(".dist-info")} == PACKAGES


def test_data_is_inside_and_small(wheel):
    _, files, _ = wheel
    assert 0 < files["freeflow_transformers/assets/digits.safetensors"] <= 2_000_000
    assert 0 < files["freeflow_metrics/assets/digits-features.safetensors"] <= 300_000
    for needed in (
        "freeflow_transformers/presets/digits.yaml",
        "freeflow_transformers/presets/pretrain-digits.yaml",
        "freeflow_core/py.typed",
    ):
        assert needed in files
    assert not [f for f in files if f.endswith((".pyc", ".ipynb")) or "/tests/" in f]


def test_the_templates_of_plugins_new_are_inside(wheel):
    _, files, _ = wheel
    templates = {path.relative_to(ROOT / "cli").as_posix() for path in (ROOT / "cli").rglob("*.template")}
    assert len(templates) >= 20
    assert templates <= set(files)


def test_entry_points_and_metadata(wheel):
    _, files, archive = wheel
    (entry_points,) = [f for f in files if f.endswith("entry_points.txt")]
    text = archive.read(entry_points).decode()
    assert "freeflow = freeflow_cli.main:main" in text
    assert text.count(".plugin") == len(PACKAGES) - 2
    (metadata,) = [f for f in files if f.endswith(".dist-info/METADATA")]
    assert "Requires-Python: >=3.11" in archive.read(metadata).decode()


def test_import_names_are_ours_alone():
    assert {"freeflow_core", "freeflow_cli"} < PACKAGES
    assert all(name.startswith("freeflow_") for name in PACKAGES)
    code = "import importlib.util as u; assert not any(u.find_spec(n) for n in ('plugins', 'cli'))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
