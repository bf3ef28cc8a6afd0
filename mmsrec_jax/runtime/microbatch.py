"""A batch worked through in microbatches on the device: less memory, the same result."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def split(tree: Any, num_microbatches: int) -> Any:
    """[B, ...] -> [N, B / N, ...]. Row b belongs to microbatch b % N, so that every microbatch
    takes as many rows from every device."""
    return jax.tree.map(
        lambda x: x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1), tree
    )


def map_microbatches(function: Callable[[Any], Any], num_microbatches: int) -> Callable[[Any], Any]:
    """`function` over arrays with first axis B, in N calls of B / N rows."""
    if num_microbatches == 1:
        return function

    def run(tree: Any) -> Any:
        out = jax.lax.map(function, split(tree, num_microbatches))
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), out)

    return run


def accumulate_gradients(
    function: Callable[[Any], Any], num_microbatches: int
) -> Callable[[Any], Any]:
    """The sum of what `function` gives for N calls of B / N rows."""
    if num_microbatches == 1:
        return function

    def run(tree: Any) -> Any:
        parts = split(tree, num_microbatches)
        out = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, function(part)), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, out), parts)[0]

    return run
