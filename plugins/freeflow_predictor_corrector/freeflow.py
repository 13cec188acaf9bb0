"""FreeFlow's objectives: prediction, correction, and both on one batch."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, Context
from freeflow_core.types import Draws
from freeflow_predictor_corrector.config import CorrectionConfig, FreeFlowConfig, PredictionConfig
from freeflow_predictor_corrector.correction import Correction, Corrector, balance
from freeflow_predictor_corrector.prediction import Prediction, Predictor, check_precision
from freeflow_predictor_corrector.step import PredictorCorrector


@final
class FreeFlow(PredictorCorrector):
    """Prediction and correction on one batch (Tong et al. 2025): together better than either alone.

    lambda = alpha E||Delta_G|| / (E||Delta_N|| + epsilon) scales the correction's gradient to the prediction's;
    E runs over the global batch. It equates the gradients of one row of either kind; the batch's mean then weighs
    the halves by their shares, so that 25 % of rows carry 25 % of the sum (``balance_strength`` changes that).

    Raises:
        ConfigError: (from ``losses``) a batch too small to hold rows of both kinds.
    """

    def __init__(self, config: FreeFlowConfig) -> None:
        super().__init__(config, Predictor(config), Corrector(config))
        self._config = config
        self.uses_batch_means = config.adaptive

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, FreeFlowConfig)
        check_precision(config, context)
        return cls(config)

    def split(self, draws: Draws) -> tuple[Tensor, Tensor]:
        prediction_rows, correction_rows = draws.split(self._config.correction_share)
        if not len(prediction_rows) or not len(correction_rows):
            raise ConfigError(
                f"A batch of {draws.batch_size} rows split by objective.correction_share="
                f"{self._config.correction_share:g} has {len(prediction_rows)} prediction and {len(correction_rows)} "
                "correction rows; the freeflow objective needs at least one of each. Use a larger "
                "training.batch_size, or the objective freeflow-prediction or freeflow-correction."
            )
        return prediction_rows, correction_rows

    def scale(self, strength: float, prediction: Prediction | None, correction: Correction, context: Context) -> Tensor:
        if not self._config.adaptive:
            return super().scale(strength, prediction, correction, context)
        assert prediction is not None
        ahead, back = prediction.norm, correction.norm
        if self._config.balance == "weighted":
            ahead, back = ahead * prediction.weight, back * correction.weight
        return balance(context.mean(ahead), context.mean(back), strength, self._config.balance_epsilon)


@final
class FreeFlowPrediction(PredictorCorrector):
    """Prediction alone: every row regresses the student's velocity on its own generating target."""

    def __init__(self, config: PredictionConfig) -> None:
        super().__init__(config, Predictor(config), None)

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, PredictionConfig)
        check_precision(config, context)
        return cls(config)

    def split(self, draws: Draws) -> tuple[Tensor, Tensor]:
        return torch.arange(len(draws.index)), torch.empty(0, dtype=torch.int64)


@final
class FreeFlowCorrection(PredictorCorrector):
    """Correction alone: every row. lambda = alpha, for there is no prediction to balance with. It collapses modes."""

    def __init__(self, config: CorrectionConfig) -> None:
        super().__init__(config, None, Corrector(config))

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, CorrectionConfig)
        return cls(config)

    def split(self, draws: Draws) -> tuple[Tensor, Tensor]:
        return torch.empty(0, dtype=torch.int64), torch.arange(len(draws.index))
