"""Scores of samples: distances to data and teacher, class accuracy, spread, fidelity."""
