"""Samples of a trained network, their scores and pictures, and the report."""
