"""For plugin authors: exact oracles and contract tests."""

from freeflow_core.testing.contracts.base import CheckResult as CheckResult
from freeflow_core.testing.contracts.base import ComponentContract as ComponentContract
from freeflow_core.testing.contracts.base import ContractFailure as ContractFailure
from freeflow_core.testing.contracts.base import check_names as check_names
from freeflow_core.testing.contracts.base import run_contract as run_contract
from freeflow_core.testing.contracts.data import CodecContract as CodecContract
from freeflow_core.testing.contracts.data import SourceContract as SourceContract
from freeflow_core.testing.contracts.evaluation import DistanceContract as DistanceContract
from freeflow_core.testing.contracts.evaluation import EvaluatorContract as EvaluatorContract
from freeflow_core.testing.contracts.evaluation import VerifierContract as VerifierContract
from freeflow_core.testing.contracts.objective import ObjectiveContract as ObjectiveContract
from freeflow_core.testing.contracts.sampler import SamplerContract as SamplerContract
from freeflow_core.testing.contracts.student import StudentContract as StudentContract
from freeflow_core.testing.contracts.teacher import TeacherContract as TeacherContract
from freeflow_core.testing.contracts.tracker import TrackerContract as TrackerContract

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
