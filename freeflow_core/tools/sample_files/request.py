"""Which samples are asked for, the generator that draws them, and the settings that decide every one of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import torch
from torch import nn

from freeflow_core.config import ComponentChoice, ComponentConfig
from freeflow_core.config.load import lay_settings, merge, resolve_choice
from freeflow_core.engine.build import DTYPES, Builder
from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.sampling import Generator, Labels
from freeflow_core.evaluation.student_file import StudentFile
from freeflow_core.interfaces import FlowMapSampler, HybridSampler, Student, Teacher
from freeflow_core.plugin import Registry
from freeflow_core.types import NetworkState

Precision: TypeAlias = Literal["float32", "bf16", "float64"]


@dataclass(frozen=True)
class SampleRequest:
    """Samples 0 ... ``num`` - 1 of a student, a teacher, or both; None leaves a choice to the parts."""

    num: int
    student: StudentFile | None
    teacher: str | None
    sampler: str | None
    steps: int | None
    guidance_weight: float
    guidance_interval: tuple[float, float]
    jump_to: float
    labels: Labels
    seed: int
    precision: Precision
    assignments: tuple[str, ...]


@final
class PreparedSamples:
    """Everything built for a request: ``generator`` draws its samples.

    Raises ``ConfigError``: parts that do not fit each other.
    """

    def __init__(self, request: SampleRequest, registry: Registry, device: torch.device) -> None:
        self._request, student = request, request.student
        chosen: dict[str, Any] = {"sampler": {"name": request.sampler or ("one-step" if student else "heun")}}
        if request.teacher is not None:
            chosen["teacher"] = {"name": request.teacher}
        elif student is not None and student.teacher is not None:
            chosen["teacher"] = student.teacher.model_dump(mode="json")
        laid = lay_settings({**chosen, "codec": {}}, request.assignments, closed=True)

        def resolved(kind: str, choice: Any) -> ComponentChoice:
            return resolve_choice(registry, kind, ComponentChoice.model_validate(choice), kind)

        self._choices = {kind: resolved(kind, laid[kind]) for kind in chosen}
        builder = Builder(registry, device, request.seed, request.precision)
        sampler = builder.build("sampler", self._choices["sampler"])
        self._is_hybrid = isinstance(sampler, HybridSampler)
        self._teacher: Teacher | None = None
        if not isinstance(sampler, FlowMapSampler):
            if "teacher" not in chosen:
                raise ConfigError("This sampler needs a teacher: name one with --teacher.")
            self._teacher = builder.teacher(self._choices["teacher"])
        codec: Any = {"name": (self._teacher.codec if self._teacher else None) or "pixels"}
        if student is not None:
            codec = student.codec.model_dump(mode="json")
        self._choices["codec"] = resolved("codec", merge({"codec": codec}, {"codec": laid["codec"]})["codec"])
        self._student: Student | None = student.student.to(device) if student else None
        if request.precision == "float64":
            for network in (self._teacher, self._student):
                if network is not None:
                    network.to(DTYPES[request.precision])
        self._steps = request.steps or (4 if self._is_hybrid else 100 if self._teacher else 1)
        low, high = request.guidance_interval
        self.generator = Generator(
            sampler,
            self._steps,
            builder.build("codec", self._choices["codec"]),
            teacher=self._teacher,
            student=self._student,
            seed=request.seed,
            guidance_weight=request.guidance_weight,
            guidance_low=low,
            guidance_high=high,
            jump_to=request.jump_to,
            labels=request.labels,
            precision=request.precision,
        )

    def settings(self) -> dict[str, Any]:
        """All that decides the samples, as JSON. Networks count by their weights, wherever the files lie."""
        request = self._request
        uses_student = self._student is not None and self._student in self.generator.networks
        return {
            "num": request.num,
            "seed": request.seed,
            "labels": request.labels if isinstance(request.labels, str) else list(request.labels),
            "student": self._describe_student() if uses_student else None,
            "teacher": self._describe_teacher(self._teacher) if self._teacher is not None else None,
            "sampler": self._choices["sampler"].model_dump(mode="json"),
            "steps": self._steps,
            "jump_to": request.jump_to if self._is_hybrid else None,
            "guidance_weight": request.guidance_weight,
            "guidance_interval": list(request.guidance_interval),
            "codec": self._choices["codec"].model_dump(mode="json"),
            "precision": request.precision,
        }

    def _describe_student(self) -> dict[str, Any]:
        file = self._request.student
        assert file is not None
        kind = file.metadata.get("component", type(file.student).__name__)
        return {"name": kind, "network": network_digest(file.student, file.student.network_state())}

    def _describe_teacher(self, teacher: Teacher) -> dict[str, Any]:
        options = self._choices["teacher"].options
        assert isinstance(options, ComponentConfig)
        paths = {name for name, value in options if isinstance(value, Path)}
        shown = {"name": self._choices["teacher"].name, **options.model_dump(mode="json", exclude=paths)}
        return shown | {"network": network_digest(teacher, teacher.network_state())}


def network_digest(network: nn.Module, state: NetworkState | None = None) -> str:
    """Hex digest of all weights and buffers, and of the configuration in ``state``, which says how they are used.

    Equal for equal networks, wherever their file lies.
    """
    digest = hashlib.blake2b(digest_size=16)
    if state is not None:
        digest.update(json.dumps([state.family, dict(state.config)], sort_keys=True, default=str).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
