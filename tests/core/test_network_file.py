import pickle

import pytest
import torch

from freeflow_core.errors import CheckpointError
from freeflow_core.network_file import check_tensors, load_network, load_tensors, save_network, save_tensors
from freeflow_core.types import NetworkState

STATE = NetworkState("some-family", {"width": 3}, {"w": torch.randn(4, 3), "steps": torch.tensor(7)})


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "network.safetensors"
    save_network(path, STATE, {"component": "x"})
    state, metadata = load_network(path)
    assert (state.family, state.config, metadata) == ("some-family", {"width": 3}, {"component": "x"})
    assert torch.equal(state.tensors["w"], STATE.tensors["w"])
    assert state.tensors["steps"].dtype is torch.int64
    save_network(path, STATE, {}, dtype=torch.float16)
    assert torch.allclose(load_network(path)[0].tensors["w"], STATE.tensors["w"], atol=2e-3)


def test_truncated_missing_foreign_and_pickled_files_are_refused(tmp_path):
    path = tmp_path / "n.safetensors"
    save_network(path, STATE, {})
    whole = path.read_bytes()
    for cut in (0, 4, 40, len(whole) - 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="cannot be read as a safetensors file"):
            load_network(path)
    with pytest.raises(CheckpointError, match="There is no checkpoint file"):
        load_network(tmp_path / "none")
    save_tensors(path, STATE.tensors)
    with pytest.raises(CheckpointError, match="no freeflow metadata"):
        load_network(path)

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was executed",))

    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        load_network(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "n.safetensors"
    save_network(path, STATE, {})
    before = path.read_bytes()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("freeflow_core.network_file.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_network(path, STATE, {"new": 1})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["n.safetensors"]


def test_differences_are_listed():
    expected = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    found = {"b": torch.zeros(4), "c": torch.zeros(1), "d": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"missing: a.*unexpected: d.*b is \(4,\), not \(3,\)"):
        check_tensors(expected, found, "thing")
    check_tensors(expected, expected, "thing")
    with pytest.raises(CheckpointError, match=r"missing: n00, n01, n02, n03, n04, n05, \.\.\. \(30 in all\)\.$"):
        check_tensors({f"n{i:02d}": torch.zeros(1) for i in range(30)}, {}, "thing")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_even_where_shapes_are_enough(tmp_path, value):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"a": torch.zeros(2), "b": torch.tensor([1.0, value])})
    for shapes_only in (False, True):
        with pytest.raises(CheckpointError, match="NaN or infinity in b"):
            load_tensors(path, shapes_only=shapes_only, finite=True)


def test_integers_in_the_place_of_weights_are_refused():
    with pytest.raises(CheckpointError, match=r"not floating-point: a is torch\.int8"):
        check_tensors({"a": torch.zeros(2)}, {"a": torch.zeros(2, dtype=torch.int8)}, "file")
