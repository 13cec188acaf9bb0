"""``python -m freeflow_cli`` and ``torchrun -m freeflow_cli``: the same as ``freeflow``."""

from freeflow_cli.main import main

main()
