"""Verifiers: what best-of-N search ranks its candidates by."""

import pkgutil
from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError, PluginError
from freeflow_core.interfaces import BuildContext, EvaluationContext, Verifier
from freeflow_core.types import Condition
from freeflow_metrics.classes import class_labels
from freeflow_metrics.config import CallableVerifierConfig, ClassProbabilityConfig, FeatureCentroidConfig
from freeflow_metrics.features import SmallFeatures, build_features, image_features


@final
class ClassProbability(Verifier):
    """The logarithm of a classifier's probability of the class that was asked for.

    Raises:
        ConfigError: (from ``score``) samples without a class that the classifier knows.
    """

    def __init__(self, config: ClassProbabilityConfig) -> None:
        self._network = SmallFeatures.chosen(config)

    def prepare(self, context: EvaluationContext) -> None:
        self._network.to(context.device)

    @torch.no_grad()
    def score(self, images: Tensor, condition: Condition) -> Tensor:
        labels = class_labels(condition)
        num_classes = self._network.num_classes
        if labels is None or bool((labels < 0).any() or (labels >= num_classes).any()):
            raise ConfigError(
                f"The verifier class-probability needs a class label from 0 to {num_classes - 1} for every sample. Use "
                "feature-centroid or callable for other conditions."
            )
        logits = self._network.logits(self._network.features(images))
        return logits.double().log_softmax(1).gather(1, labels[:, None])[:, 0]


@final
class FeatureCentroid(Verifier):
    """Minus the distance, in features, to the mean of the real images of the class that was asked for.

    Without labels: to the mean of all. The real images are the reference source's training images, or the held-out
    ones where it has no others in memory.

    Raises:
        ConfigError: (from ``prepare``) there are no real images, or a class has none.
    """

    def __init__(self, config: FeatureCentroidConfig) -> None:
        self._network = build_features(config)
        self._centroids: dict[int | None, Tensor] = {}

    def prepare(self, context: EvaluationContext) -> None:
        source = context.reference
        found = None if source is None else source.training_images() or source.held_out()
        if found is None:
            raise ConfigError(
                "The verifier feature-centroid compares with real images, but there are none. Name a source of them "
                "as reference, e.g. --set reference=digits, or use another verifier."
            )
        self._network.to(context.device)
        images, condition = found
        features = torch.cat(list(image_features(self._network, images)))
        self._centroids = {None: features.mean(0)}
        labels = class_labels(condition)
        if labels is not None:
            self._centroids |= {label: features[labels == label].mean(0) for label in set(labels.tolist())}

    @torch.no_grad()
    def score(self, images: Tensor, condition: Condition) -> Tensor:
        labels = class_labels(condition)
        keys: list[int | None] = [None] * len(images) if labels is None else labels.tolist()
        if missing := sorted({key for key in keys if key is not None and key not in self._centroids}):
            raise ConfigError(
                f"The verifier feature-centroid has no real images of the classes {missing[:10]}. Name a reference "
                "that has, or use another verifier."
            )
        features = torch.cat(list(image_features(self._network, images)))
        return -(features - torch.stack([self._centroids[key] for key in keys])).norm(dim=1)


@final
class CallableVerifier(Verifier):
    """Any function ``f(images, condition) -> (N,) scores``, named as ``module:function``. Importing it runs it.

    Raises:
        ConfigError: the session is not trusted (``--trust``), or there is no such function.
    """

    def __init__(self, function: Callable[[Tensor, Condition], Any], name: str) -> None:
        self._function = function
        self._name = name

    @classmethod
    def from_config(cls, config: CallableVerifierConfig, context: BuildContext) -> Self:
        context.require_trust("The verifier 'callable'", f"import and call {config.function}")
        try:
            function = pkgutil.resolve_name(config.function)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"verifier.function={config.function!r} cannot be imported: {error}. Expected module:function, with "
                "the module on PYTHONPATH or in an installed package."
            ) from error
        return cls(function, config.function)

    def prepare(self, context: EvaluationContext) -> None:
        """Nothing to load: the function is the user's own."""

    @torch.no_grad()
    def score(self, images: Tensor, condition: Condition) -> Tensor:
        scores = torch.as_tensor(self._function(images, condition))
        if tuple(scores.shape) != (len(images),):
            raise PluginError(
                f"The verifier function {self._name} returned scores of shape {tuple(scores.shape)} for {len(images)} "
                f"samples; expected one number a sample, ({len(images)},)."
            )
        return scores.detach().cpu().double()
