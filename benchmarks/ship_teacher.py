"""Turn a run of `freeflow pretrain` into a teacher file that ships: averaged weights, stored as float16.

python benchmarks/ship_teacher.py runs/digits-teacher plugins/freeflow_transformers/assets/digits.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from freeflow_core.network_file import load_network, save_network


def main(run: Path, target: Path) -> None:
    """Read ``run``'s student file and write ``target``."""
    state, metadata = load_network(run / "student.safetensors")
    save_network(target, state, metadata, dtype=torch.float16)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB, {sum(t.numel() for t in state.tensors.values()):,} numbers")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
