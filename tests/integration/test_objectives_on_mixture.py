"""Every objective trains a student of the 8-mode mixture to a tenth of the teacher's single Euler step, or says why not.

Each method's budget is stated in its :class:`Proof`. A method whose paper promises more than one step is sampled with
that many. Figures of all methods: docs/reference/objectives-flow-maps.md and its neighbours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from generative_proofs import GENERATIVE_PROOFS
from objective_proof import LIMIT, Proof, prove

from freeflow_core.plugin import Manager

# Differentiating along a trajectory needs a time embedding of low frequency: with three pairs in place of one, FACM's and
# MeanFlow's ratios are five to ten times larger and vary with the seed.
SMOOTH = {"num_frequencies": 1}
# In two dimensions the power-law weight shifts MeanFlow's fixed point, and a small run needs more times near the noise than
# the paper's long ones on images. Averaged targets follow faster for the same reason. Everything else is the default.
MEANFLOW = {"weight_power": 0.0, "instant_share": 0.5, "time_location": 0.5, "time_scale": 1.5, "derivative": "central"}
AYF = {"tangent_normalisation": True, "tangent_warmup_fraction": 0.1, "tangent_warmup_end": 0.99, "weighting": "none"}


def flow_map(name: str, forwards: float, *, images: int = 100_000, **options: Any) -> Proof:
    """A method with a few-step mode; ``options`` of a proof are keyed by its fields, the others are the objective's."""
    fields = {key: options.pop(key) for key in ("data", "teacher", "renoise", "four_steps") if key in options}
    return Proof({"name": name, **options}, forwards, images=images, student=SMOOTH, **{"four_steps": True, **fields})


PREDICTION = Proof({"name": "freeflow-prediction"}, forwards=6, images=100_000, data=False)
FLOW_MAPS = {
    "meanflow": flow_map("meanflow", 5, **MEANFLOW),
    "meanflow-from-data": flow_map("meanflow", 4, velocity="data", teacher=False, **MEANFLOW),
    "improved-meanflow": flow_map("improved-meanflow", 4.5, teacher=False, **MEANFLOW),
    "consistency": flow_map("consistency", 6, target_halflife_images=1_000, renoise=True),
    "continuous-consistency": flow_map("continuous-consistency", 6, data_std=1.43, derivative="central", renoise=True),
    "facm": flow_map("facm", 9, derivative="central", renoise=True),
    "shortcut": flow_map("shortcut", 4.125, target_halflife_images=2_000),
    "lagrangian": flow_map("lagrangian", 5.5),
    "lagrangian-from-prior": flow_map("lagrangian", 10, start="prior", data=False, four_steps=False, images=60_000),
    "eulerian": flow_map("eulerian", 4.5, derivative="central"),
    "eulerian-ayf": flow_map("eulerian", 4.5, derivative="central", **AYF),
}

# It teaches a velocity, no jumps: one Euler step of it is the yardstick itself, so it is sampled as its paper does.
FLOW_MATCHING = Proof({"name": "flow-matching"}, 3, teacher=False, steps=32, velocity=True, images=100_000)
PROOFS = {
    "freeflow-prediction": PREDICTION,
    "flow-matching": FLOW_MATCHING,
    **FLOW_MAPS,
    **GENERATIVE_PROOFS,
}


# Ten seconds each: one of every kind in the suite, all of them in the long tests.
SUITE = {
    "meanflow",
    "consistency",
    "shortcut",
    "lagrangian-from-prior",
    "pi-flow-prior",
    "score-distillation-dmd",
    "pairs-endpoint",
    "progressive-prior",
}
assert PROOFS.keys() >= SUITE


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SUITE else pytest.mark.long) for name in PROOFS]
)
def test_student_reaches_a_tenth_of_the_teachers_euler_step(name: str, tmp_path: Path, manager: Manager) -> None:
    _check(PROOFS[name], tmp_path, manager, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", PROOFS)
def test_other_seeds_reach_it_too(name: str, seed: int, tmp_path: Path, manager: Manager) -> None:
    _check(PROOFS[name], tmp_path, manager, seed)


def _check(proof: Proof, tmp_path: Path, manager: Manager, seed: int) -> None:
    outcome = prove(proof, tmp_path / "run", manager, seed)
    print(outcome)  # noqa: T201
    assert outcome.ratio <= LIMIT, str(outcome)
    if proof.four_steps:
        assert outcome.four_steps <= LIMIT * outcome.euler, str(outcome)
