"""Correctness, speed and an experiment on one accelerator, each within one short rent."""
