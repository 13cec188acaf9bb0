"""Samples on disk: the pieces, each by itself."""

import dataclasses
import json
import zipfile
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.evaluation.sampling import SampleBatch
from freeflow_core.tools.job_folder import JobFolder
from freeflow_core.tools.sample_files.files import (
    Blocks,
    ImageFormat,
    Part,
    Parts,
    block_size,
    class_labels,
    sample_format,
    write_npz,
)
from freeflow_core.tools.sample_files.sample import network_digest
from freeflow_core.tools.sample_files.writer import Manifest
from freeflow_core.types import Guidance, NetworkState


@given(num=st.integers(1, 1000), batch_size=st.integers(1, 200), other=st.integers(1, 200))
def test_blocks_hold_every_index_once_in_order_whatever_the_batch_size(num, batch_size, other):
    blocks = Blocks(num, block_size(batch_size, 25, 64, num))
    assert blocks.size % batch_size == 0
    assert 64 <= blocks.size < 64 + batch_size
    one_step = block_size(batch_size, 1, 64, num)
    assert blocks.size <= one_step <= max(blocks.size, min(num, 32 * batch_size))
    assert one_step + batch_size > min(num, 32 * batch_size)
    assert block_size(batch_size, 1, 2**22, num) == blocks.size
    for size in (batch_size, other):
        batches = [b for block in range(len(blocks)) for b in blocks.batches(block, size)]
        assert torch.cat(batches).tolist() == list(range(num))
        assert max(map(len, batches)) <= size
    assert blocks.count(set(range(len(blocks)))) == num


@given(cuts=st.lists(st.integers(0, 50), max_size=6), shape=st.sampled_from([(), (2,), (3, 4, 1)]))
def test_a_streamed_npz_is_what_numpy_reads_whatever_the_chunks(tmp_path_factory, cuts, shape):
    array = np.random.default_rng(0).integers(0, 256, (50, *shape), dtype=np.uint8)
    labels, folder = np.arange(50), tmp_path_factory.mktemp("npz")
    chunks = [array[a:b] for a, b in pairwise(sorted({0, *cuts, 50}))]
    write_npz(folder / "a.npz", 50, {"arr_0": iter(chunks), "arr_1": [labels]})
    with np.load(folder / "a.npz") as found:
        assert found.files == ["arr_0", "arr_1"]
        assert found["arr_0"].dtype == array.dtype
        assert np.array_equal(found["arr_0"], array)
        assert np.array_equal(found["arr_1"], labels)
    assert zipfile.ZipFile(folder / "a.npz").testzip() is None
    write_npz(folder / "b.npz", 50, {"arr_0": [array], "arr_1": [labels]})
    assert (folder / "a.npz").read_bytes() == (folder / "b.npz").read_bytes()


def test_parts_come_back_and_damaged_ones_are_named(tmp_path):
    parts = Parts(tmp_path)
    assert parts.finished() == set()
    samples = np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1)
    parts.write(7, Part(24.0, np.array([0.5, 0.25]), np.array([1, 2, 3]), samples))
    parts.write(2, Part(0.0, np.array([0.1]), None, None))
    assert parts.finished() == {2, 7}
    found = parts.read(7)
    assert (found.evaluations, found.seconds.tolist()) == (24.0, [0.5, 0.25])
    assert np.array_equal(found.samples, samples)
    assert found.labels.tolist() == [1, 2, 3]
    assert parts.read(7, samples=False).samples is None
    assert (parts.read(2).labels, parts.read(2).samples) == (None, None)
    file = next(parts.folder.glob("*7.npz"))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"block-000007.npz is damaged.*same command again"):
        parts.read(7)


def folder_at(path):
    return JobFolder(path, "samples.json", Manifest, "samples")


def test_a_manifest_comes_back(tmp_path):
    manifest = Manifest({"seed": 0, "labels": [1, 2], "teacher": {"name": "digits", "weights": "ab"}}, 64)
    folder_at(tmp_path).write(dataclasses.asdict(manifest))
    assert folder_at(tmp_path).read() == manifest
    assert folder_at(tmp_path / "nowhere").read() is None


@pytest.mark.parametrize("text", ["", "{}", "[]", json.dumps({"freeflow_version": "1", "more": 1})])
def test_a_file_that_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "samples.json").write_text(text)
    with pytest.raises(ConfigError, match="cannot be continued"):
        folder_at(tmp_path).read()


def test_a_digest_knows_every_weight_and_no_file():
    def network(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))

    assert network_digest(network(0)) == network_digest(network(0))
    assert network_digest(network(0)) != network_digest(network(1))
    changed = network(0)
    changed[1].running_mean[1] += 1e-6
    assert network_digest(changed) != network_digest(network(0))
    assert network_digest(network(0).double()) != network_digest(network(0))
    kinds = [NetworkState("sit", {"sign": sign}, {}) for sign in (1, -1)]
    assert network_digest(network(0), kinds[0]) == network_digest(network(0), NetworkState("sit", {"sign": 1}, {}))
    assert network_digest(network(0), kinds[0]) != network_digest(network(0), kinds[1])


def batch(images, condition=None):
    index = torch.arange(len(images))
    return SampleBatch(index, images, images, images, condition, Guidance(torch.ones(len(images))), 1.0, 0.1)


def test_labels_are_classes_or_none():
    assert class_labels([torch.tensor([1, 2]), torch.tensor([3], dtype=torch.int32)]).tolist() == [1, 2, 3]
    assert class_labels([torch.tensor([1])]).dtype == np.int64
    for other in (None, {"a": torch.tensor([1])}, torch.zeros(1, 8), torch.zeros(1)):
        assert class_labels([other]) is None


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_lossless_and_numbered_by_index(tmp_path, suffix, channels):
    from PIL import Image

    samples = np.random.default_rng(0).integers(0, 256, (3, 8, 8, channels), dtype=np.uint8)
    pictures = ImageFormat(suffix)
    assert pictures.missing(tmp_path / "later", 2) == {f"000000.{suffix}", f"000001.{suffix}"}
    pictures.write_block(tmp_path, range(64, 67), samples)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"0000{i}.{suffix}" for i in (64, 65, 66)]
    for i, sample in enumerate(samples):
        found = np.array(Image.open(tmp_path / f"0000{64 + i}.{suffix}"))
        assert np.array_equal(found, np.broadcast_to(sample, (8, 8, 3)))
    assert len(pictures.missing(tmp_path, 67)) == 64
    (tmp_path / f"000065.{suffix}").write_bytes(b"")
    assert len(pictures.missing(tmp_path, 67)) == 65, "an empty file is none"


def test_a_pillow_without_webp_is_told_at_the_start(monkeypatch):
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    with pytest.raises(ConfigError, match="WebP"):
        sample_format("webp", (3, 8, 8))
