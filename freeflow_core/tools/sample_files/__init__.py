"""Samples on disk: numbered by index, written in blocks, resumable, drawn by any number of processes."""
