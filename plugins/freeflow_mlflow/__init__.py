"""Sends runs to MLflow, from a thread of its own, and keeps what a dead server did not take."""
