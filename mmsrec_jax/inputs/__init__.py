"""Training and scoring examples, and their static-shape batches."""
