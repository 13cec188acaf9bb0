"""Run by torchrun: the runs of a plan, one after the other, in one launch, for starting processes takes longest."""

import json
import sys
from pathlib import Path

import torch
from torch._dynamo.utils import counters
from torch.distributed.distributed_c10d import _world
from torch.distributed.tensor import DTensor

from freeflow_core import api
from freeflow_core.config import load_run_config
from freeflow_core.engine.run import Run
from freeflow_core.plugin import Manager, Registry

held = {}
trained = Run._train


def part(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def train(run):
    """Notes what this process holds after training: elements of the student, and bytes of all networks' state."""
    trained(run)
    waits = [group._get_backend(torch.device("cpu")).options._timeout for group in _world.pg_map]
    assert {each.total_seconds() for each in waits} == {run.config.runtime.timeout_seconds}, waits
    teacher = run.components.teacher
    tensors = [] if teacher is None else [*teacher.parameters(), *teacher.buffers()]
    for role in run.state.roles.values():
        for network in filter(None, (role.network, role.ema)):
            tensors += [*network.parameters(), *network.buffers()]
        if role.optimizer is not None:
            tensors += role.optimizer.state_dict().values()
    student = sum(part(p).numel() for p in run.state.roles["student"].network.parameters())
    held[run.config.name] = student, sum(part(t).numel() * t.element_size() for t in tensors)


Run._train = train


def main():
    plan, folder = json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2])
    torch.set_num_threads(1)
    manager = Manager.load()
    registry = Registry(manager)
    for name, (base, settings) in plan.items():
        config = load_run_config(registry, "distill", overrides=base, assignments=[f"name={name}", *settings])
        output = folder / name
        counters.clear()
        api.distill(config, output=output, resume=(output / "config.yaml").exists(), manager=manager)
        assert not config.runtime.compile or counters["stats"]["unique_graphs"] > 3
    (folder / f"held-{torch.distributed.get_rank()}.json").write_text(json.dumps(held))


if __name__ == "__main__":
    main()
