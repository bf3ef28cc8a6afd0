"""Looks at a data set before anything is trained: numbers, problems, sampled histories."""
