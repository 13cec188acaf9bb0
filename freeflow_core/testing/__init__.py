"""For plugin authors: exact oracles and contract tests."""

from freeflow_core.testing.contracts import (
    CodecContract,
    ComponentContract,
    ContractFailure,
    EvaluatorContract,
    ObjectiveContract,
    SamplerContract,
    SourceContract,
    StudentContract,
    TeacherContract,
    TrackerContract,
    VerifierContract,
)

__all__ = [
    "CodecContract",
    "ComponentContract",
    "ContractFailure",
    "EvaluatorContract",
    "ObjectiveContract",
    "SamplerContract",
    "SourceContract",
    "StudentContract",
    "TeacherContract",
    "TrackerContract",
    "VerifierContract",
]
