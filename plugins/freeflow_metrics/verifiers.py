"""Verifiers: what best-of-N search ranks its candidates by."""

import pkgutil
from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import Tensor
from torch.nn.functional import softplus

from freeflow_core.errors import ConfigError, PluginError
from freeflow_core.interfaces import BuildContext, EvaluationContext, Student, Teacher, Verifier
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Condition
from freeflow_metrics.classes import class_labels
from freeflow_metrics.config import (
    CallableVerifierConfig,
    ClassProbabilityConfig,
    DensityRatioConfig,
    FeatureCentroidConfig,
)
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


def _real_images(context: EvaluationContext, verifier: str) -> tuple[Tensor, Condition]:
    """The reference source's training images, or the held-out ones where it has no others in memory."""
    source = context.reference
    found = None if source is None else source.training_images() or source.held_out()
    if found is None:
        raise ConfigError(
            f"The verifier {verifier} compares with real images, but there are none. Name a source of them as "
            "reference, e.g. --set reference=digits, or use another verifier."
        )
    return found


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
        self._network.to(context.device)
        images, condition = _real_images(context, "feature-centroid")
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
class DensityRatio(Verifier):
    """log p(features | class) of real images less that of the student's one-step samples, both estimated.

    The real images are the reference source's training images, or the held-out ones where it has no others in memory.

    Raises:
        ConfigError: (from ``prepare``) no real images, no student of flow maps, or a class without either.
    """

    def __init__(self, config: DensityRatioConfig) -> None:
        self._config = config
        self._network = build_features(config)
        self._mean = self._scale = torch.zeros(0)
        self._weights: dict[int | None, Tensor] = {}

    def prepare(self, context: EvaluationContext) -> None:
        student, teacher = context.student, context.teacher
        if student is None or teacher is None:
            raise ConfigError(
                "The verifier density-ratio compares real images with one-step samples of a student and its teacher's "
                "classes; one of the two is missing. Use another verifier."
            )
        found = _real_images(context, "density-ratio")
        self._network.to(context.device)
        images, labels = found[0], class_labels(found[1])
        real = torch.cat(list(image_features(self._network, images))).double()
        drawn, condition = self._student_features(context, student, teacher)
        other = class_labels(condition)
        both = torch.cat([real, drawn])
        self._mean, self._scale = both.mean(0), both.std(0).clamp_min(1e-6)
        if labels is None or other is None or not self._config.per_class:
            self._weights = {None: self._fitted(real, drawn)}
            return
        self._weights = {
            label: self._fitted(real[labels == label], drawn[other == label]) for label in set(other.tolist())
        }

    @torch.no_grad()
    def score(self, images: Tensor, condition: Condition) -> Tensor:
        labels = class_labels(condition) if None not in self._weights else None
        keys: list[int | None] = [None] * len(images) if labels is None else labels.tolist()
        if missing := sorted({key for key in keys if key is not None and key not in self._weights}):
            raise ConfigError(
                f"The verifier density-ratio was fitted without the classes {missing[:10]}. Raise "
                "verifier.num_samples, or set verifier.per_class=false."
            )
        features = self._inputs(torch.cat(list(image_features(self._network, images))).double())
        return (features * torch.stack([self._weights[key] for key in keys])).sum(1)

    @torch.no_grad()
    def _student_features(
        self, context: EvaluationContext, student: Student, teacher: Teacher
    ) -> tuple[Tensor, Condition]:
        """Features (num_samples, F) of samples of all classes in turn, and their conditions."""
        every, parts = torch.arange(self._config.num_samples), []
        for index in torch.split(every, 250):
            z = PhiloxDraws(self._config.seed, index, device=context.device).noise("prior", tuple(student.sample_shape))
            one = torch.ones(len(z), device=z.device)
            condition = teacher.balanced_condition(index)
            x = student.flow_map(z, one, 0 * one, condition, self._config.guidance_weight * one)
            images = context.codec.decode(x) if x.ndim == 4 else x
            parts += list(image_features(self._network, images))
        return torch.cat(parts).double(), teacher.balanced_condition(every)

    def _inputs(self, features: Tensor) -> Tensor:
        """(N, 2 F + 1): standardised, their squares, 1."""
        x = (features - self._mean) / self._scale
        return torch.cat([x, x.square(), torch.ones(len(x), 1, dtype=x.dtype, device=x.device)], 1)

    def _fitted(self, real: Tensor, drawn: Tensor) -> Tensor:
        """Coefficients of the log ratio: both sets weigh the same, whatever their sizes."""
        if min(len(real), len(drawn)) < 1:
            raise ConfigError(
                "The verifier density-ratio needs real images and samples of every class; one has none. Raise "
                "verifier.num_samples, or set verifier.per_class=false."
            )
        inputs = self._inputs(real), self._inputs(drawn)
        weights = torch.zeros(inputs[0].shape[1], dtype=torch.float64, device=real.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            positive, negative = (x @ weights for x in inputs)
            total = softplus(-positive).mean() + softplus(negative).mean()
            total = total + self._config.penalty * weights[:-1].square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        return weights.detach()


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
