"""The ``freeflow`` command line: a thin layer over :mod:`freeflow_core.api`.

Its start stays light: what only some commands need, such as pydantic, Rich's progress and above all torch, is imported
inside them.
"""
