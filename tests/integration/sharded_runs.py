"""Run by torchrun: the runs of a plan, one after the other, in one launch, for starting processes takes longest."""

import json
import logging
import sys
from pathlib import Path

import torch

from freeflow_core import api
from freeflow_core.config import load_run_config
from freeflow_core.engine.run import Run
from freeflow_core.plugin import Manager, Registry

held = {}
real = Run._train


def train(run):
    """Notes how many elements of the student and its moments this process holds after the run."""
    real(run)
    role = run.state.roles["student"]
    parts = [p.to_local() if run.state.sharding else p for p in role.network.parameters()]
    held[run.config.name] = sum(part.numel() for part in parts)


Run._train = train


def main():
    plan, folder = json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2])
    torch.set_num_threads(1)
    logging.getLogger("freeflow").addHandler(logging.StreamHandler())
    manager = Manager.load()
    registry = Registry(manager)
    for name, (base, settings) in plan.items():
        config = load_run_config(registry, "distill", overrides=base, assignments=[f"name={name}", *settings])
        output = folder / name
        api.distill(config, output=output, resume=(output / "config.yaml").exists(), manager=manager)
    (folder / f"held-{torch.distributed.get_rank()}.json").write_text(json.dumps(held))


if __name__ == "__main__":
    main()
