"""Options of the TensorBoard tracker."""

from pathlib import Path

from pydantic import Field, PositiveFloat

from freeflow_core.config.component import ComponentConfig


class TensorboardConfig(ComponentConfig):
    """Event files for TensorBoard: metrics and pictures by images seen, configuration and report as text.

    Source: https://www.tensorflow.org/tensorboard
    """

    logdir: Path | None = None
    """Folder for all runs, each in one of its own; null: `tensorboard/` in the run's folder, so that `tensorboard
    --logdir runs` shows every run."""
    flush_seconds: PositiveFloat = Field(10.0, description="Seconds after which metrics are written in any case.")
