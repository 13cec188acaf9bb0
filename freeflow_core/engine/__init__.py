"""The training engine: the only place that knows accelerate."""
