"""Several objectives on one teacher: the same budget, the same evaluation, one table."""
