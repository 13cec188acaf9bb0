"""Checkpoint files of every format, and those that must be refused."""

import argparse
import os
import pickle

import pytest
import torch
from freeflow_transformers.released.reading import read_checkpoint
from safetensors.torch import save_file

from freeflow_core.errors import CheckpointError
from freeflow_core.network_file import save_tensors

EMA = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
MODEL = {name: tensor + 1 for name, tensor in EMA.items()}


def training_checkpoint(**changes):
    """As the training scripts of DiT, SiT and REPA write it."""
    return {
        "model": MODEL,
        "ema": EMA,
        "opt": {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(model="SiT-XL/2", lr=1e-4, ckpt=None),
        "steps": 7,
        **changes,
    }


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], t) for name, t in expected.items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_state_dicts_under_any_name(tmp_path, zipped):
    torch.save(EMA, tmp_path / "x.safetensors", _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(tmp_path / "x.safetensors")
    assert same(checkpoint.tensors, EMA)
    assert checkpoint.container == "state dict"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_training_checkpoints_give_the_average_unless_asked(tmp_path, zipped):
    path = tmp_path / "x.pt"
    torch.save(training_checkpoint(), path, _use_new_zipfile_serialization=zipped)
    assert same(read_checkpoint(path).tensors, EMA)
    assert same(read_checkpoint(path, "ema").tensors, EMA)
    assert same(read_checkpoint(path, "model").tensors, MODEL)
    assert read_checkpoint(path).container == "training checkpoint, entry ema"
    torch.save(training_checkpoint(ema={}), path)
    assert same(read_checkpoint(path).tensors, MODEL)
    with pytest.raises(CheckpointError, match=r"'ema' were asked for, but .* holds the entries model, ema, opt"):
        read_checkpoint(path, "ema")


def test_safetensors_of_both_origins(tmp_path):
    save_file(EMA, tmp_path / "plain")
    assert same(read_checkpoint(tmp_path / "plain").tensors, EMA)
    assert read_checkpoint(tmp_path / "plain").metadata == {}
    save_tensors(tmp_path / "own", EMA, {"family": "x"})
    assert read_checkpoint(tmp_path / "own").metadata == {"family": "x"}
    with pytest.raises(CheckpointError, match="holds one set of weights"):
        read_checkpoint(tmp_path / "plain", "ema")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "module.module."])
def test_prefixes_of_wrappers_go(tmp_path, prefix):
    torch.save({prefix + name: tensor for name, tensor in EMA.items()}, tmp_path / "x.pt")
    assert same(read_checkpoint(tmp_path / "x.pt").tensors, EMA)


def test_prefixes_go_only_where_they_are_prefixes(tmp_path):
    torch.save({"blocks.0._orig_mod.b": torch.ones(2), "module.b": torch.ones(3)}, tmp_path / "x.pt")
    assert set(read_checkpoint(tmp_path / "x.pt").tensors) == {"blocks.0.b", "module.b"}
    torch.save({"_orig_mod.b": torch.ones(2), "b": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="the same tensor twice"):
        read_checkpoint(tmp_path / "x.pt")


def test_shapes_alone_need_no_data(tmp_path):
    torch.save(training_checkpoint(), tmp_path / "x.pt")
    torch.save(EMA, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(EMA, tmp_path / "x.safetensors")
    for name in ("x.pt", "old.pt", "x.safetensors"):
        checkpoint = read_checkpoint(tmp_path / name, shapes_only=True)
        assert checkpoint.shapes == {"a.weight": (2, 3), "b": (2,)}
        assert all(tensor.is_meta for tensor in checkpoint.tensors.values())


class Harmful:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["tensor", "args", "bare", "legacy"])
def test_nothing_in_a_pickle_is_executed(tmp_path, where):
    path, trace = tmp_path / "x.pt", tmp_path / "trace"
    if where == "bare":
        path.write_bytes(pickle.dumps(Harmful(trace), protocol=2))
    elif where == "args":
        torch.save(training_checkpoint(args=Harmful(trace)), path)
    else:
        torch.save({**EMA, "x": Harmful(trace)}, path, _use_new_zipfile_serialization=where == "tensor")
    with pytest.raises(CheckpointError, match="loading such objects can run code") as caught:
        read_checkpoint(path)
    assert not trace.exists()
    assert "mkdir" in str(caught.value) or where in ("bare", "legacy")
    assert "weights_only" not in str(caught.value)


def test_the_allowance_does_not_outlive_the_call(tmp_path):
    before = set(torch.serialization.get_safe_globals())  # a list in no order of its own
    torch.save(training_checkpoint(), tmp_path / "x.pt")
    read_checkpoint(tmp_path / "x.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    assert argparse.Namespace not in before


def test_whole_models_and_other_objects_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(CheckpointError, match="holds a list, not named tensors"):
        read_checkpoint(path)
    for content in ({}, {"opt": {}, "args": 1}, {"ema": 3}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="holds no weights: expected a state dict"):
            read_checkpoint(path)
    torch.save(training_checkpoint(ema={**EMA, "step": 3}), path)
    with pytest.raises(CheckpointError, match=r"The entry ema of .* holds more than tensors: step"):
        read_checkpoint(path)


@pytest.mark.parametrize("kept", [0, 9, -10])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_one_clear_error(tmp_path, kind, kept):
    path = tmp_path / "x"
    if kind == "safetensors":
        save_file(EMA, path)
    else:
        torch.save(EMA, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[:kept])
    for shapes_only in (False, True):
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(path, shapes_only=shapes_only)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        read_checkpoint(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        read_checkpoint(tmp_path)
    (tmp_path / "x.pt").write_text("<!doctype html><html>404</html>")
    with pytest.raises(CheckpointError, match="neither a safetensors file nor a PyTorch checkpoint"):
        read_checkpoint(tmp_path / "x.pt")
