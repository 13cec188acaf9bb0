"""FreeFlow: flow-map distillation without data, by prediction and correction."""
