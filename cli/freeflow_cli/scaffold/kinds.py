"""What is said about each kind of component in the package that is written for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KindTemplate:
    """One kind.

    Args:
        summary: of the small component, for ``freeflow plugins list``.
        source: where its formula comes from.
        advice: what to change first, for the README.
        options: of the component, for its contract test.
        verb: the command that runs ``example.yaml``.
        commands: those after it; ``{name}`` stands for the component's name.
    """

    summary: str
    source: str
    advice: str
    options: Mapping[str, object] = field(default_factory=dict)
    verb: str = "distill"
    commands: tuple[str, ...] = ()


TEMPLATES: Mapping[str, KindTemplate] = {
    "teacher": KindTemplate(
        summary="Exact velocity of Gaussians on a ring in the plane, one for each class.",
        source="Closed form: E[n - x | x_t, c]",
        advice="`velocity` is the whole teacher: put your network into `__init__`, load its weights there, and convert "
        "its convention\nto freeflow's in `velocity`: t = 0 is data, t = 1 noise, v = dx_t/dt. The contract says so "
        "when time or sign run the\nother way. `null_condition` is what guidance compares with; raise `ConfigError` "
        "there if your network has none.",
        options={"num_classes": 3},
    ),
    "student": KindTemplate(
        summary="A perceptron that predicts the average velocity of small states.",
        source="Average velocity: Geng et al. 2025, arXiv 2505.13447",
        advice="Replace the layers in `__init__` and their use in `forward`; keep everything with weights inside "
        "`forward`. When\nyour network can start from a teacher's weights, take them in `load_teacher` and report "
        "what was taken.",
        options={"width": 16, "depth": 1},
    ),
    "objective": KindTemplate(
        summary="Regression of one step on the teacher's end points.",
        source="Luhman & Luhman 2021, arXiv 2101.02388",
        advice="`losses` is the objective: one value a row, (N,), never their mean. Further networks (a critic, an "
        "average of the\nstudent) are returned by `roles` and found in `models`. Gradient passes go through "
        "`models[name].wrapped`, all\nothers through `.bare`; every random number comes from `draws`.",
        options={"num_steps": 8},
    ),
    "sampler": KindTemplate(
        summary="The midpoint method: second order, two evaluations a step.",
        source="Runge 1895",
        advice="Change the step in `sample`. Derive from `FlowMapSampler` instead of `VelocitySampler` to jump with a "
        "student. Count\nwhat a sample costs in `Samples.num_evaluations`; guided evaluations are two.",
    ),
    "source": KindTemplate(
        summary="Endless samples of two half moons, one for each class; use with codec: states.",
        source="After scikit-learn's make_moons",
        advice="`_rows` makes samples `first` to `first + count`: read your files there. Sample i has to be the same "
        "whenever it is\nasked for. For images return uint8 (N, C, H, W), drop `encoded_by`, and set `image_shape`.",
        options={"held_out": 16},
        verb="pretrain",
    ),
    "codec": KindTemplate(
        summary="Pixels as states, moved and scaled.",
        source="",
        advice="`encode` and `decode` are the codec. A network is loaded in `prepare`, which may raise a "
        "`FreeflowError` when its weights\ncannot be had: then a run trains without pictures and scores.",
        options={"mean": -0.2, "scale": 1.5},
        verb="pretrain",
    ),
    "evaluator": KindTemplate(
        summary="Errors of the mean and the spread against the many-step teacher.",
        source="",
        advice="For each row of the table: `reset`, `update` for every batch, `compute`. Real images to compare with "
        "are in\n`context.reference` when `prepare` is called. Set `paired = True` to compare sample by sample with "
        "`batch.reference_x`.",
    ),
    "tracker": KindTemplate(
        summary="Metrics as one CSV table in the run's folder.",
        source="",
        advice="Send each call to where your metrics live. `state` is kept in checkpoints, so that a resumed run goes "
        "on in the same\nplace; it must be JSON. A tracker that raises costs the run one warning.",
    ),
    "verifier": KindTemplate(
        summary="Nearness to a point.",
        source="",
        advice="`score` ranks the candidates that `freeflow search` draws: one number a sample, higher is better. "
        "Load a network in\n`prepare`. The contract "
        "expects that real images score higher than noise; `prefers_real_images = False` in the test says\nthat yours "
        "measures something else.",
        commands=(
            "freeflow search --run runs/{name} --verifier {name} --set 'verifier.place=[0.7,0]' --steps 8 --num 20",
        ),
    ),
}
"""Kinds that a package can be written for, in the order of help texts."""
