"""Rows in sequential rounds on the device: less memory, the same result."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def split(tree: Any, rounds: int) -> Any:
    """[B, ...] -> [rounds, B / rounds, ...]. Row b belongs to round b % rounds, so that every round
    takes as many rows from every device."""
    return jax.tree.map(lambda x: x.reshape(-1, rounds, *x.shape[1:]).swapaxes(0, 1), tree)


def mapped(function: Callable[[Any], Any], rounds: int) -> Callable[[Any], Any]:
    """`function` over arrays with first axis B, in `rounds` calls of B / rounds rows."""
    if rounds == 1:
        return function

    def run(tree):
        out = jax.lax.map(function, split(tree, rounds))
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), out)

    return run


def summed(function: Callable[[Any], Any], rounds: int) -> Callable[[Any], Any]:
    """The sum of what `function` gives for `rounds` calls of B / rounds rows."""
    if rounds == 1:
        return function

    def run(tree):
        parts = split(tree, rounds)
        out = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))

        def add(total, part):
            return jax.tree.map(jnp.add, total, function(part)), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, out), parts)[0]

    return run
