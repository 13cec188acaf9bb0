"""Budgets of the objectives that roll, pair, halve or match distributions.

``forwards`` count a backward pass twice and an unguided teacher, as here, once. Pairs made online cost the teacher's
whole path: one image is then worth many of another method.
"""

from __future__ import annotations

from objective_proof import Proof

_POLICY = {"name": "mlp-policy", "num_components": 16, "num_substeps": 32}

GENERATIVE_PROOFS = {
    "pi-flow-prior": Proof(
        {"name": "pi-flow", "states": "prior"}, forwards=5, data=False, images=20_000, student=_POLICY
    ),
    "pi-flow-data": Proof({"name": "pi-flow"}, forwards=5, images=20_000, student=_POLICY),
    # The paper uses dx at four evaluations only. One dx policy from noise ends at 10 to 14 % here.
    "pi-flow-dx": Proof(
        {"name": "pi-flow", "num_segments": 4},
        forwards=5,
        steps=4,
        images=60_000,
        student={**_POLICY, "policy": "dx", "num_components": 10},
        overrides={"training": {"optimizer": {"clip_norm": 1.0}}},  # the paper clips too
    ),
    "imm": Proof({"name": "imm"}, forwards=4, teacher=False, four_steps=True),
    "imm-teacher": Proof({"name": "imm", "velocity": "teacher"}, forwards=5, four_steps=True),
    "score-distillation-dmd": Proof({"name": "score-distillation"}, forwards=4.6, data=False),
    "score-distillation-vsd": Proof(
        {"name": "score-distillation", "weighting": "vsd", "critic_updates": 1}, forwards=7, data=False
    ),
    "pairs-endpoint": Proof({"name": "pairs", "solver_steps": 16}, forwards=35, data=False, images=40_000),
    "pairs-rectified-flow": Proof(
        {"name": "pairs", "mode": "rectified-flow", "solver_steps": 16},
        forwards=35,
        data=False,
        images=60_000,
        four_steps=True,
    ),
    "progressive": Proof({"name": "progressive", "start_steps": 8}, forwards=5, images=100_000),
    "progressive-prior": Proof(
        {"name": "progressive", "start_steps": 8, "states": "prior"}, forwards=6.4, data=False, images=60_000
    ),
}
"""By name; sampled in one step unless said otherwise."""
