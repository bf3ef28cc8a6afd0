"""Examples to batches of static shapes; worker processes import these, and they no jax."""
