"""What the command line and notebooks call.

>>> import freeflow_core as freeflow
>>> result = freeflow.distill(teacher="digits", training={"images": 20_000})    # doctest: +SKIP
>>> result.student.sample(16, labels=[3, 7])                                     # doctest: +SKIP
>>> result.scores["student"]                                                     # doctest: +SKIP
"""

from freeflow_core.api.checking import TeacherCheck, check_teacher
from freeflow_core.api.networks import export, fetch, list_weights, load_student, load_teacher
from freeflow_core.api.results import Images, RunResult, TrainedStudent
from freeflow_core.api.scoring import evaluate, search
from freeflow_core.api.training import (
    RunSettings,
    ScoreSettings,
    compare,
    distill,
    plan,
    pretrain,
    propose,
    resolve_config,
)
from freeflow_core.config.compare import CompareConfig
from freeflow_core.tools.compare.runner import CompareResult
from freeflow_core.tools.cost.plan import Plan
from freeflow_core.tools.cost.proposal import Proposal
from freeflow_core.tools.cost.rate import Rate, RateFrom
from freeflow_core.tools.cost.step import RolePlan
from freeflow_core.tools.derivatives import DerivativeCost, check_derivatives, measure_derivatives
from freeflow_core.tools.doctor import diagnose
from freeflow_core.tools.encode import Encoded, encode
from freeflow_core.tools.sample_files.sample import sample
from freeflow_core.tools.sample_files.writer import SampleResult
from freeflow_core.tools.search import SearchResult
from freeflow_core.types import Check
from freeflow_core.weights import WeightStatus

__all__ = [
    "Check",
    "CompareConfig",
    "CompareResult",
    "DerivativeCost",
    "Encoded",
    "Images",
    "Plan",
    "Proposal",
    "Rate",
    "RateFrom",
    "RolePlan",
    "RunResult",
    "RunSettings",
    "SampleResult",
    "ScoreSettings",
    "SearchResult",
    "TeacherCheck",
    "TrainedStudent",
    "WeightStatus",
    "check_derivatives",
    "check_teacher",
    "compare",
    "diagnose",
    "distill",
    "encode",
    "evaluate",
    "export",
    "fetch",
    "list_weights",
    "load_student",
    "load_teacher",
    "measure_derivatives",
    "plan",
    "pretrain",
    "propose",
    "resolve_config",
    "sample",
    "search",
]
