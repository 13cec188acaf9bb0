"""A run as a page on this machine: curves, pictures over time, scores, settings, and the student on demand."""
