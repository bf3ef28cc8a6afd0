"""The k-core, round by round: all partitions at once drop rows of items that are no longer there
and users with too few rows, then the items are counted again.

The largest part in which all have enough is one and the same in whatever order the others go, so
this is what `filters.k_core` leaves.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mmsrec_jax.data.partitioned import items
from mmsrec_jax.data.partitioned.plan import Plan


class State(NamedTuple):
    """After how many rounds; whether items were found that have to go."""

    round: int
    goes_on: bool


BEGIN = State(0, True)


def drop(plan: Plan, state: State, part: int) -> int:
    """One round in one partition: writes edges-ROUND-PART (user, item, row: what is left, as
    indices into users-PART, the items, rows-PART) and degrees-ROUND-PART (items, counts)."""
    if not state.goes_on:
        return part
    if state.round == 0:
        codes, lengths = plan.arrays(f"codes-{part}")["items"], _lengths(plan, part)
        edges = {
            "user": np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            "item": codes.astype(np.int32),
            "row": np.arange(len(codes), dtype=np.int32),
        }
    else:
        edges = plan.arrays(f"edges-{state.round}-{part}")
        there = _unpacked(plan, state.round)
        edges = _select(edges, there[edges["item"]])
    per_user = np.bincount(edges["user"])
    edges = _select(edges, per_user[edges["user"]] >= plan.user_core)
    found, counts = np.unique(edges["item"], return_counts=True)
    plan.put_arrays(f"edges-{state.round + 1}-{part}", **edges)
    plan.put_arrays(f"degrees-{state.round + 1}-{part}", items=found, counts=counts)
    return part


def count(plan: Plan, state: State, parts: list[int]) -> State:
    """Writes there-ROUND, which items have enough rows in all partitions. parts: all of them, which
    have done the round after `state`."""
    if not state.goes_on:
        return state
    degrees = np.zeros(len(plan.table(items.FILE)), np.int32)
    for part in parts:
        found = plan.arrays(f"degrees-{state.round + 1}-{part}")
        degrees[found["items"]] += found["counts"].astype(np.int32)
    there = degrees >= plan.item_core
    plan.put_arrays(f"there-{state.round + 1}", bits=np.packbits(there), items=np.array(len(there)))
    return State(state.round + 1, bool((~there & (degrees > 0)).any()))


def rows(plan: Plan, state: State, part: int) -> np.ndarray:
    """int32[n]: the rows of a partition that are left, ascending. state: the last one."""
    return plan.arrays(f"edges-{state.round}-{part}")["row"]


def outdated(plan: Plan, rounds: Iterable[int]) -> list[str]:
    """Files of these rounds, which nobody reads once a pipeline of later ones has begun. Within one
    they stay: a runner may do steps again whose results it lost."""
    return [
        name
        for number in rounds
        for name in (
            f"there-{number}",
            *(f"{of}-{number}-{part}" for of in ("edges", "degrees") for part in range(plan.parts)),
        )
    ]


def _lengths(plan: Plan, part: int) -> np.ndarray:
    return plan.arrays(f"rows-{part}")["lengths"]


def _unpacked(plan: Plan, round: int) -> np.ndarray:
    found = plan.arrays(f"there-{round}")
    return np.unpackbits(found["bits"], count=int(found["items"])).astype(bool)


def _select(edges: dict[str, np.ndarray], keep: np.ndarray) -> dict[str, np.ndarray]:
    return {name: value[keep] for name, value in edges.items()}
