"""Keeps MLflow a copy of the journal in the run folder."""
