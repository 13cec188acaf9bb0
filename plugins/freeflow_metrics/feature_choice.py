"""From options to a feature network."""

from __future__ import annotations

from freeflow_metrics.config import ClassifierOptions, FeatureOptions
from freeflow_metrics.features import FeatureNetwork, SmallFeatures
from freeflow_metrics.inception import InceptionFeatures


def build_features(options: FeatureOptions) -> FeatureNetwork:
    """The chosen network, on the host.

    Raises:
        ConfigError: Inception's file is missing or unusable.
        CheckpointError: ``features_file`` cannot be read.
    """
    if options.features == "inception":
        return InceptionFeatures(options.inception_path, options.inception_resize)
    return build_classifier(options)


def build_classifier(options: ClassifierOptions | FeatureOptions) -> SmallFeatures:
    """The chosen small network, which is a classifier. Raises ``CheckpointError`` as :func:`build_features`."""
    if options.features_file is not None:
        return SmallFeatures.from_file(options.features_file)
    return SmallFeatures.packaged(options.features)
