"""A page about a run, written by observers alone."""
