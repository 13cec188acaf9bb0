"""What the package can do besides training: one room a verb."""
