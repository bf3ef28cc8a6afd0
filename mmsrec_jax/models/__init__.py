"""The models alone, in Flax: arrays in, hidden states out."""
