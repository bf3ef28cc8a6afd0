"""From scores to ranks, metrics, tables and comparisons of runs."""
