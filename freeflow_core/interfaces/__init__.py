"""The abstract pieces. One class a file, no numerics."""

from freeflow_core.interfaces.build import Buildable
from freeflow_core.interfaces.build_context import BuildContext
from freeflow_core.interfaces.codec import Codec, Distance
from freeflow_core.interfaces.evaluator import EvaluationBatch, EvaluationContext, Evaluator, Verifier
from freeflow_core.interfaces.objective import (
    Context,
    Model,
    Models,
    Objective,
    ObjectiveInRounds,
    Role,
    StatefulObjective,
    Transition,
)
from freeflow_core.interfaces.sampler import FlowMapSampler, HybridSampler, Sampler, VelocitySampler
from freeflow_core.interfaces.source import Source, block_starts
from freeflow_core.interfaces.student import AverageVelocityStudent, Policy, PolicyStudent, StartTimes, Student
from freeflow_core.interfaces.teacher import ConvertibleTeacher, Teacher
from freeflow_core.interfaces.tracker import Tracker

__all__ = [
    "AverageVelocityStudent",
    "BuildContext",
    "Buildable",
    "Codec",
    "Context",
    "ConvertibleTeacher",
    "Distance",
    "EvaluationBatch",
    "EvaluationContext",
    "Evaluator",
    "FlowMapSampler",
    "HybridSampler",
    "Model",
    "Models",
    "Objective",
    "ObjectiveInRounds",
    "Policy",
    "PolicyStudent",
    "Role",
    "Sampler",
    "Source",
    "StartTimes",
    "StatefulObjective",
    "Student",
    "Teacher",
    "Tracker",
    "Transition",
    "VelocitySampler",
    "Verifier",
    "block_starts",
]
