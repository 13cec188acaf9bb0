"""MeanFlow and improved MeanFlow."""
