"""An exact teacher to check everything else with, and a small student for vector states."""
