"""A small page on this machine that asks a finished run for recommendations."""
