"""For plugin authors: exact oracles and contract tests."""

from freeflow_core.testing.contracts.base import (
    CheckResult,
    ComponentContract,
    ContractFailure,
    check_names,
    run_contract,
)
from freeflow_core.testing.contracts.data import CodecContract, SourceContract
from freeflow_core.testing.contracts.evaluation import DistanceContract, EvaluatorContract, VerifierContract
from freeflow_core.testing.contracts.objective import ObjectiveContract
from freeflow_core.testing.contracts.sampler import SamplerContract
from freeflow_core.testing.contracts.student import StudentContract
from freeflow_core.testing.contracts.teacher import TeacherContract
from freeflow_core.testing.contracts.tracker import TrackerContract

CONTRACTS: dict[str, type[ComponentContract]] = {
    "teacher": TeacherContract,
    "student": StudentContract,
    "objective": ObjectiveContract,
    "sampler": SamplerContract,
    "codec": CodecContract,
    "source": SourceContract,
    "evaluator": EvaluatorContract,
    "tracker": TrackerContract,
    "verifier": VerifierContract,
    "distance": DistanceContract,
}
"""The contract of every kind."""

__all__ = [
    "CONTRACTS",
    "CheckResult",
    "CodecContract",
    "ComponentContract",
    "ContractFailure",
    "DistanceContract",
    "EvaluatorContract",
    "ObjectiveContract",
    "SamplerContract",
    "SourceContract",
    "StudentContract",
    "TeacherContract",
    "TrackerContract",
    "VerifierContract",
    "check_names",
    "run_contract",
]
