"""One sweep a file: `get_sweep()` names an experiment and the points of it that are compared."""
