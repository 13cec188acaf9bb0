# Recipes for people who work on freeflow. `just --list` shows them.

# Everything CI runs, in the current environment.
check:
    ruff check .
    ruff format --check .
    mypy
    lint-imports
    pytest -n 2

# The tests that take minutes.
test-long:
    pytest -m long --timeout 3600

# The tests that need a CUDA device.
test-gpu:
    pytest -m gpu

# Kills, stops, full disks, damaged checkpoints and bad inputs, with counts (half an hour or more; goes on where it was stopped).
test-faults:
    PYTHONPATH=tests python tests/faults/run_faults.py --folder faults
    PYTHONPATH=tests python tests/faults/run_bad_inputs.py

# The scripts for several machines, on this one: two launchers, and stand-ins for SLURM (minutes).
test-cluster:
    pytest -m "long or not long" --timeout 1800 tests/integration/test_cluster.py

# Every command block of the site as it is printed (minutes), see tests/packaging/test_doc_commands.py.
test-docs:
    pytest -m "long or not long" --timeout 3600 tests/packaging/test_doc_commands.py

# Run the site's notebooks in full, and keep what they show.
notebook:
    python docs/_notebooks.py

# The documentation site, at http://127.0.0.1:8000.
docs:
    mkdocs serve

# Rebuild the shipped digits teacher and its feature network (minutes; see their cards).
assets:
    python -m freeflow_metrics.train_features --output plugins/freeflow_metrics/assets/digits-features.safetensors
    freeflow pretrain --preset digits --output runs/digits-teacher
    python benchmarks/ship_teacher.py runs/digits-teacher plugins/freeflow_transformers/assets/digits.safetensors

# Rebuild the shipped mnist teacher and what it needs, from MNIST's files in data/mnist (hours; see their cards).
assets-mnist:
    python -m freeflow_data.train_autoencoder --output plugins/freeflow_data/assets/mnist-vae.safetensors
    python -m freeflow_metrics.make_statistics --output plugins/freeflow_metrics/assets/mnist-test.npz --set path=data/mnist
    python -m freeflow_metrics.make_statistics --output plugins/freeflow_metrics/assets/mnist-train.npz --set path=data/mnist --split training
    freeflow encode --source mnist --codec small-vae --batch-size 256 --output data/mnist-latents
    freeflow pretrain --preset mnist-latent --output runs/mnist-latent-teacher
    python benchmarks/ship_teacher.py runs/mnist-latent-teacher plugins/freeflow_transformers/assets/mnist.safetensors

# Step time over the sum of its unavoidable network passes, beside a plain loop.
bench:
    python benchmarks/step_time.py
