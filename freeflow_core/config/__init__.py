"""Configuration: pydantic models, frozen, unknown keys refused; merged from preset, file and ``--set``."""

from freeflow_core.config.component import ComponentChoice as ComponentChoice
from freeflow_core.config.component import ComponentConfig as ComponentConfig
from freeflow_core.config.load import load_run_config as load_run_config
from freeflow_core.config.load import to_yaml as to_yaml
from freeflow_core.config.run import CheckpointingConfig as CheckpointingConfig
from freeflow_core.config.run import EMAConfig as EMAConfig
from freeflow_core.config.run import EvaluationConfig as EvaluationConfig
from freeflow_core.config.run import LoggingConfig as LoggingConfig
from freeflow_core.config.run import OptimizerConfig as OptimizerConfig
from freeflow_core.config.run import RunConfig as RunConfig
from freeflow_core.config.run import RuntimeConfig as RuntimeConfig
from freeflow_core.config.run import SamplesConfig as SamplesConfig
from freeflow_core.config.run import TrainingConfig as TrainingConfig
