"""Options of the Weights & Biases tracker."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat

from freeflow_core.config.component import ComponentConfig


class WandbConfig(ComponentConfig):
    """Weights & Biases run with configuration, metrics by images seen, pictures and report.

    Source: https://docs.wandb.ai
    """

    project: str = Field("freeflow", min_length=1, max_length=128, description="Made when it is missing.")
    entity: str | None = Field(None, description="User or team; null: the login's own.")
    group: str | None = Field(None, description="Null: the comparison that the run belongs to.")
    run_name: str | None = Field(None, description="Null: the run's name.")
    tags: tuple[str, ...] = Field((), description="Tags of the run.")
    mode: Literal["online", "offline"] | None = None
    """offline: keep everything in the folder, for `wandb sync`; null: WANDB_MODE, else online."""
    folder: Path | None = Field(None, description="Where its files lie; null: `wandb/` in the run's folder.")
    flush_seconds: PositiveFloat = Field(10.0, description="Seconds after which metrics are sent in any case.")
    finish_seconds: PositiveFloat = Field(60.0, description="Longest wait at the end of a run.")
    start_seconds: PositiveFloat = Field(30.0, description="Longest wait for the server at the start.")
    log_artifacts: bool = Field(False, description="Send files (student, tables) as an artifact of the run.")
