"""Pure functions on tensors; everything that is mathematics and nothing else."""
