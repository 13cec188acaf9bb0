"""Processes that share out work: here threads, which hand each other what processes would send."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from freeflow_core.engine import process
from freeflow_core.engine.interruption import StopRequest
from freeflow_core.engine.process import Crew
from freeflow_core.errors import ConfigError, FreeflowError


class Member:
    """What a crew needs of one of ``num_processes``."""

    device = torch.device("cpu")

    def __init__(self, rank, num_processes):
        self.process_index, self.num_processes, self.is_main_process = rank, num_processes, rank == 0


@pytest.fixture
def together(monkeypatch):
    """Runs ``work(crew, rank)`` as each of a number of processes; what each returned, or raised."""

    def run(number, work, stops=None):
        barrier, told = threading.Barrier(number, timeout=60), [None] * number

        def exchanged(member, values):
            told[member.process_index] = values
            barrier.wait()
            found = [value for values in told for value in values]
            barrier.wait()
            return found

        monkeypatch.setattr(process, "from_each", exchanged)

        def attempt(rank):
            try:
                return work(Crew(Member(rank, number), stops[rank] if stops else None), rank)
            except (Exception, KeyboardInterrupt) as error:
                return error

        with ThreadPoolExecutor(number) as threads:
            return list(threads.map(attempt, range(number)))

    return run


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("pieces", [0, 1, 5, 8])
def test_each_does_its_share_and_has_all_results_in_order(together, number, pieces):
    done = [[] for _ in range(number)]

    def work(crew, rank):
        def piece(index):
            done[rank].append(index)
            return {"index": index, "tensor": torch.full((2,), float(index))}

        return list(crew.shared(partial(piece, index) for index in range(pieces)))

    for results in together(number, work):
        assert [result["index"] for result in results] == list(range(pieces))
        assert all(torch.equal(result["tensor"], torch.full((2,), float(result["index"]))) for result in results)
    assert done == [list(range(rank, pieces, number)) for rank in range(number)]


@pytest.mark.parametrize("error", [ConfigError("no such thing"), ValueError("broken")])
def test_what_fails_in_one_ends_all(together, error):
    def work(crew, rank):
        def piece(index):
            if index == 3:
                raise error
            return index

        return list(crew.shared(partial(piece, index) for index in range(6)))

    found = together(2, work)
    assert found[1] is error
    assert isinstance(found[0], FreeflowError)
    assert str(error) in str(found[0])


def test_a_signal_to_one_ends_all(together):
    stops = [StopRequest(), StopRequest()]

    def work(crew, rank):
        def piece(index):
            if index == 3:
                stops[0].requested = True
            return index

        return list(crew.shared(partial(piece, index) for index in range(20)))

    assert all(isinstance(found, KeyboardInterrupt) for found in together(2, work, stops))


def test_a_gpu_that_does_not_tell_its_load_ends_no_run(monkeypatch):
    class NVMLError(Exception):
        """As of NVIDIA's library, for a slice of a GPU."""

    def refused(device):
        raise NVMLError("Not Supported")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (25, 100))
    monkeypatch.setattr(torch.cuda, "utilization", refused)
    found = process.machine_usage(torch.device("cuda"))
    assert found["system/gpu_memory_usage_percentage"] == 75
    assert "system/gpu_utilization_percentage" not in found
