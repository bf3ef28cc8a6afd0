"""This package and transformers on the same weights and rows: what their parts share."""
