"""Configuration: pydantic models, frozen, unknown keys refused; merged from preset, file and ``--set``."""

from freeflow_core.config.component import ComponentChoice, ComponentConfig
from freeflow_core.config.load import load_run_config, to_yaml
from freeflow_core.config.run import (
    CheckpointingConfig,
    EMAConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizerConfig,
    RunConfig,
    RuntimeConfig,
    SamplesConfig,
    TrainingConfig,
)

__all__ = [
    "CheckpointingConfig",
    "ComponentChoice",
    "ComponentConfig",
    "EMAConfig",
    "EvaluationConfig",
    "LoggingConfig",
    "OptimizerConfig",
    "RunConfig",
    "RuntimeConfig",
    "SamplesConfig",
    "TrainingConfig",
    "load_run_config",
    "to_yaml",
]
