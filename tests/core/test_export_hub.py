"""A student goes to a hub on loopback and comes back: files, card, errors."""

import json

import pytest
import yaml
from freeflow_data.small_vae import packaged_autoencoder
from hub_server import TOKEN, Hub
from huggingface_hub import constants
from PIL import Image
from run_helpers import freeflow
from test_export import LATENTS, PIXELS, transformer, write_student

from freeflow_core import api
from freeflow_core.config import to_yaml
from freeflow_core.errors import ConfigError, DownloadError
from freeflow_core.evaluation.student_file import save_student
from freeflow_core.network_file import save_network
from freeflow_core.types import NetworkState

DIGITS = {**PIXELS, "num_classes": 10, "guidance": True}


@pytest.fixture
def hub(weights_cache, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a run leaves of which a card is made."""
    folder = tmp_path_factory.mktemp("run")
    config = api.resolve_config("distill", preset="digits")
    (folder / "config.yaml").write_text(to_yaml(config))
    save_student(folder / "student.safetensors", config, transformer(DIGITS), 640)
    Image.new("L", (8, 8)).save(folder / "comparison.png")
    scores = {
        "teacher_floor": {"fd": 0.6, "fd_error": 0.05},
        "student": {"evaluations": 1, "fd": 2.5, "fd_error": 0.25},
    }
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def card_of(text):
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_student_is_pushed_with_a_card_of_its_run_and_sampled_from_the_hub(hub, run, tmp_path):
    freeflow("push", "someone/digits", "--run", run, "--private")
    files = hub.repositories["someone/digits"]
    assert {"README.md", "student.safetensors", "config.yaml", "scores.json", "comparison.png"} <= files.keys()
    assert hub.private["someone/digits"]
    head, body = card_of(files["README.md"].decode())
    assert head["license"] == "apache-2.0"
    assert {"one-step", "data-free"} <= set(head["tags"])
    for part in (
        "`digits`",
        "`freeflow`",
        "hf:someone/digits",
        "comparison.png",
        "student, 1 step",
        "| data-free | yes |",
    ):
        assert part in body
    freeflow("sample", "--student", "hf:someone/digits", "--num", 4, "--output", tmp_path / "theirs")
    freeflow("sample", "--run", run, "--num", 4, "--output", tmp_path / "ours")
    assert (tmp_path / "theirs/grid.png").read_bytes() == (tmp_path / "ours/grid.png").read_bytes()


def test_a_codec_of_the_users_own_travels_with_the_student(hub, tmp_path):
    network = packaged_autoencoder()
    vae = tmp_path / "mine.safetensors"
    save_network(vae, NetworkState("freeflow_data.small_autoencoder", network.config, network.state_dict()), {})
    codec = {"name": "small-vae", "checkpoint": str(vae)}
    path = write_student(tmp_path / "student.safetensors", transformer(LATENTS), "transformer", codec=codec)
    expected = api.load_student(path).sample(3, labels=5).tensor
    api.load_student(path).push_to_hub("someone/latents", licence="CC BY-NC 4.0")
    vae.unlink()
    assert card_of(hub.repositories["someone/latents"]["README.md"].decode())[0]["license"] == "cc-by-nc-4.0"
    assert api.load_student("hf:someone/latents").sample(3, labels=5).tensor.equal(expected)
    assert api.load_student("hf:someone/latents@main").sample(3, labels=5).tensor.equal(expected)
    hub.close()  # once it was fetched, no network is needed
    assert api.load_student("hf:someone/latents").sample(3, labels=5).tensor.equal(expected)


def test_a_repository_that_diffusers_loads(run, tmp_path):
    freeflow("push", "--run", run, "--diffusers", "--output", tmp_path / "folder")
    names = {str(path.relative_to(tmp_path / "folder")) for path in (tmp_path / "folder").rglob("*")}
    assert {"model_index.json", "pipeline.py", "transformer/config.json", "student.safetensors"} <= names
    assert "trust_remote_code=True" in (tmp_path / "folder/README.md").read_text()
    with pytest.raises(ConfigError, match="holds something"):
        api.load_student(run).save_pretrained(tmp_path / "folder")


def test_what_cannot_be_fetched_says_why(hub, monkeypatch):
    hub.repositories["someone/else"] = {"README.md": b"nothing"}
    with pytest.raises(DownloadError, match="no repository someone/missing"):
        api.load_student("hf:someone/missing")
    with pytest.raises(DownloadError, match=r"holds no student\.safetensors"):
        api.load_student("hf:someone/else")
    with pytest.raises(DownloadError, match="revision"):
        api.load_student("hf:someone/else@v9")
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        api.load_student("hf:some one//x")
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        api.load_student("hf:digits")
    with monkeypatch.context() as patch:
        patch.setenv("FREEFLOW_OFFLINE", "1")
        with pytest.raises(DownloadError, match="FREEFLOW_OFFLINE"):
            api.load_student("hf:someone/missing")
    hub.close()
    with pytest.raises(DownloadError, match="reached"):
        api.load_student("hf:someone/away")


def test_what_cannot_be_pushed_says_why_and_makes_no_repository(hub, run, tmp_path, monkeypatch):
    student = api.load_student(run)
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        student.push_to_hub("a/b/c")
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(DownloadError, match="token"):
            student.push_to_hub("someone/refused")
    with monkeypatch.context() as patch:
        patch.setenv("FREEFLOW_OFFLINE", "1")
        with pytest.raises(ConfigError, match="FREEFLOW_OFFLINE"):
            student.push_to_hub("someone/offline")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="hf auth login"):
        student.push_to_hub("someone/anonymous")
    hub.close()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(DownloadError, match="reached"):
        student.push_to_hub("someone/away")
    assert not hub.repositories
