"""From options to a feature network."""

from __future__ import annotations

from freeflow_metrics.config import ClassifierOptions, FeatureOptions
from freeflow_metrics.features import FeatureNetwork
from freeflow_metrics.inception_features import InceptionFeatures
from freeflow_metrics.small_features import SmallFeatures


def build_features(options: FeatureOptions) -> FeatureNetwork:
    """The chosen network, on the host.

    Raises:
        ConfigError: Inception's file is missing or unusable.
        CheckpointError: ``features_file`` cannot be read.
    """
    if options.features == "inception":
        return InceptionFeatures(options.inception_path, options.inception_resize)
    return _small(options)


def build_classifier(options: ClassifierOptions) -> FeatureNetwork:
    """The chosen network, which has a classifier. Raises ``CheckpointError`` when ``features_file`` cannot be read."""
    return _small(options)


def distance_prefix(options: FeatureOptions, small: str, inception: str) -> str:
    """How scores are called: the established names belong to Inception features alone."""
    return inception if options.features == "inception" else small


def _small(options: ClassifierOptions | FeatureOptions) -> SmallFeatures:
    if options.features_file is not None:
        return SmallFeatures.from_file(options.features_file)
    return SmallFeatures.packaged(options.features)
