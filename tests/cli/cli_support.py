"""Objects that several test files of the command line use."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SCORES = {
    "teacher": {"evaluations": 200.0, "ms_per_image": 12.5, "fid": 10.25},
    "student": {"evaluations": 1.0, "ms_per_image": 0.0625, "fid": 12.5, "accuracy": 0.98765},
}


def small_plan(**changes):
    """A plan of 42.5 GiB for two processes."""
    from freeflow_core.tools.cost.plan import Plan
    from freeflow_core.tools.cost.step import RolePlan

    gib = 2**30
    networks = (
        RolePlan("teacher", 674_816_272, 5 * gib // 2, other_passes=1.54),
        RolePlan("student", 678_064_912, 2 * gib, 2 * gib, 4 * gib, 2 * gib, gradient_passes=1.0, other_passes=0.75),
    )
    values: dict[str, Any] = {
        "device": "cuda", "precision": "bf16", "num_processes": 2, "batch_size": 256, "rows": 64, "accumulation": 2,
        "images": 102_400, "steps": 400, "networks": networks, "activations": 28 * gib, "buckets": 2 * gib,
        "peak": 40 * gib, "flops_per_step": 459_200_000_000_000, "load_report": "292 tensors taken", "free": None,
        "extrapolated_from": None, "warnings": ("no GPU was found",),
    }  # fmt: skip
    return Plan(**{**values, **changes})


@dataclass
class FakeApi:
    """Stands for ``freeflow_core.api``; ``calls`` holds (function, arguments)."""

    folder: Path
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    status: str = "finished"
    scores: dict[str, dict[str, float]] = field(default_factory=lambda: dict(SCORES))
    failure: BaseException | None = None
    checks: list[Any] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    free: int | None = None
    helps: bool = True

    def distill(self, config, **arguments):
        return self._run("distill", config, arguments)

    def pretrain(self, config, **arguments):
        return self._run("pretrain", config, arguments)

    def evaluate(self, config, **arguments):
        return self._run("evaluate", config, arguments)

    def plan(self, config, **arguments):
        self.calls.append(("plan", {"config": config, **arguments}))
        return small_plan(free=self.free)

    def propose(self, config, plan, **arguments):
        from freeflow_core.tools.cost.proposal import Proposal

        self.calls.append(("propose", {"config": config, "plan": plan, **arguments}))
        return Proposal(("runtime.activation_checkpointing=true",), small_plan(activations=0)) if self.helps else None

    def sample(self, **arguments):
        self.calls.append(("sample", arguments))
        return SimpleNamespace(
            folder=arguments["output"],
            files=[arguments["output"] / "grid.png"],
            evaluations=2.0,
            seconds_per_image=0.0125,
            reused=0,
        )

    def diagnose(self, manager):
        return self.checks

    def _run(self, command, config, arguments):
        self.calls.append((command, {"config": config, **arguments}))
        if self.failure is not None:
            raise self.failure
        hook = arguments["manager"].hook
        run = SimpleNamespace(name=config.name, command=command, folder=self.folder, resumed=False)
        hook.freeflow_run_started(run=run)
        hook.freeflow_run_finished(run=run, status=self.status)
        return SimpleNamespace(
            folder=self.folder,
            status=self.status,
            scores=self.scores,
            files={"student": self.folder / "student.safetensors"},
            load_report="12 tensors taken",
            duration_seconds=75.0,
            peak_memory_bytes=3 * 2**30,
        )
