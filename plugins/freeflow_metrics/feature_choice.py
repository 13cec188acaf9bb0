"""From options to a feature network."""

from __future__ import annotations

from freeflow_metrics.config import FeatureOptions
from freeflow_metrics.digits_features import DigitsFeatures
from freeflow_metrics.features import FeatureNetwork
from freeflow_metrics.inception_features import InceptionFeatures


def build_features(options: FeatureOptions) -> FeatureNetwork:
    """The chosen network, on the host. Raises ``ConfigError`` when Inception's file is missing or unusable."""
    if options.features == "inception":
        return InceptionFeatures(options.inception_path, options.inception_resize)
    return DigitsFeatures.packaged()


def distance_prefix(options: FeatureOptions, digits: str, inception: str) -> str:
    """How scores are called: the established names belong to Inception features alone."""
    return inception if options.features == "inception" else digits
