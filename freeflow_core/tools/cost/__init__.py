"""What a run will cost, before it starts: memory by kind, network passes and arithmetic of one training step."""

from freeflow_core.tools.cost.plan import Plan, make_plan
from freeflow_core.tools.cost.step import RolePlan

__all__ = ["Plan", "RolePlan", "make_plan"]
