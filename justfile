# Recipes for people who work on freeflow. `just --list` shows them.

# Everything CI runs, in the current environment.
check:
    ruff check .
    ruff format --check .
    mypy
    lint-imports
    pytest

# The tests that take minutes.
test-long:
    pytest -m long --timeout 3600

# The tests that need a CUDA device.
test-gpu:
    pytest -m gpu

# The documentation site, at http://127.0.0.1:8000.
docs:
    mkdocs serve

# Rebuild the shipped digits teacher and its feature network (minutes; see their cards).
assets:
    python -m freeflow_metrics.train_digits_features --output plugins/freeflow_metrics/assets/digits-features.safetensors
    freeflow pretrain --preset digits --output runs/digits-teacher
    python benchmarks/ship_teacher.py runs/digits-teacher plugins/freeflow_transformers/assets/digits.safetensors

# Step time over the sum of its unavoidable network passes, beside a plain loop.
bench:
    python benchmarks/step_time.py
