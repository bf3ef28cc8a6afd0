"""Rows on which attention is checked and timed, and our implementations on them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmsrec_jax.models import attention as lib


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """What attends to what, and in which shape.

    segments: int32[B, T], 0 is padding. suffixes: int32[B, T] or None, see `attention.Layout`.
    causal: False is a vision tower, where a segment (a window or an image) sees all of itself.
    """

    name: str
    segments: np.ndarray
    suffixes: np.ndarray | None
    causal: bool
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def live(self) -> np.ndarray:
        """bool[B, T]: not padding."""
        return self.segments > 0

    def ids(self) -> tuple[jax.Array, jax.Array | None]:
        """segments and suffixes on the device."""
        suffixes = None if self.suffixes is None else jnp.asarray(self.suffixes)
        return jnp.asarray(self.segments), suffixes

    def visible_pairs(self) -> int:
        """Pairs of a query and a key that it sees, in all rows together."""
        pairs = 0
        for row, segments in enumerate(self.segments):
            suffixes = np.zeros_like(segments) if self.suffixes is None else self.suffixes[row]
            of_segment = np.bincount(segments)
            prefixes = np.bincount(segments, suffixes == 0).astype(int)
            groups, counts = np.unique(np.stack([segments, suffixes]), axis=1, return_counts=True)
            for segment, suffix, count in zip(*groups.tolist(), counts.tolist(), strict=True):
                if segment and self.causal:
                    pairs += count * (count + 1) // 2 + (count * prefixes[segment] if suffix else 0)
                elif segment:
                    pairs += count * of_segment[segment]
        return int(pairs)

    def all_pairs(self) -> int:
        """What a kernel computes that knows only the causal rule, or no rule in a tower."""
        rows, length = self.segments.shape
        return rows * (length * (length + 1) // 2 if self.causal else length**2)

    def flops(self, pairs: int, *, backward: bool) -> float:
        """Of the two products a pair takes; a backward pass counts 2.5 times (five products)."""
        return 4.0 * pairs * self.heads * self.head_dim * (3.5 if backward else 1.0)


@functools.lru_cache(maxsize=8)
def tensors(case: Case) -> tuple[np.ndarray, ...]:
    """float32 q, k, v and a cotangent that is 0 at padding, all as bfloat16 has them."""
    rows, length = case.segments.shape
    generator = np.random.default_rng(0)
    q, k, v, cotangent = (
        generator.standard_normal((rows, length, heads, case.head_dim), np.float32)
        .astype(jnp.bfloat16)
        .astype(np.float32)
        for heads in (case.heads, case.kv_heads, case.kv_heads, case.heads)
    )
    return q, k, v, cotangent * case.live[..., None, None]


def packed(
    name: str, rows: int, length: int, segments: tuple[int, int], *,
    heads: int, kv_heads: int, head_dim: int,
) -> Case:  # fmt: skip
    """Rows of between `segments` segments of unequal lengths; the last twentieth is padding."""
    generator = np.random.default_rng(1)
    ids = np.zeros((rows, length), np.int32)
    used = length - length // 20
    for row, count in zip(ids, np.linspace(*segments, rows).round().astype(int), strict=True):
        cuts = np.sort(generator.choice(np.arange(1, used), count - 1, replace=False))
        row[:used] = np.searchsorted(cuts, np.arange(used), side="right") + 1
    return Case(name, ids, None, True, heads, kv_heads, head_dim)


def scoring(
    name: str, rows: int, prefix: int, suffixes: int, suffix: int, *,
    heads: int, kv_heads: int, head_dim: int,
) -> Case:  # fmt: skip
    """A prefix that all see, and suffixes of about `suffix` tokens that do not see each other."""
    generator = np.random.default_rng(2)
    length = -(-(prefix + suffixes * suffix) // 128) * 128
    segments, ids = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        at = prefix
        for number in range(1, suffixes + 1):
            end = min(at + int(generator.integers(suffix * 3 // 4, suffix + 1)), length)
            ids[row, at:end] = number
            at = end
        segments[row, :at] = 1
    return Case(name, segments, ids, True, heads, kv_heads, head_dim)


def one_segment(
    name: str, rows: int, length: int, *, heads: int, kv_heads: int, head_dim: int
) -> Case:
    """Plain causal attention."""
    return Case(name, np.ones((rows, length), np.int32), None, True, heads, kv_heads, head_dim)


def tower(name: str, rows: int, length: int, segment: int, *, heads: int, head_dim: int) -> Case:
    """Windows or images of `segment` patches each; the last twentieth is padding."""
    ids = np.broadcast_to(np.arange(length, dtype=np.int32) // segment + 1, (rows, length))
    ids = np.where(np.arange(length) < length - length // 20, ids, 0).astype(np.int32)
    return Case(name, ids, None, False, heads, heads, head_dim)


def visible(
    causal: bool, dtype: str, segments: jax.Array, suffixes: jax.Array | None
) -> lib.Visible:
    """What all layers of a model share, as the implementation in force reads it."""
    if not causal:
        return lib.within_segments(segments, dtype)
    slots = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    return lib.causal(lib.Layout(segments, suffixes, slots), None, dtype)


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: lib.Visible, cotangent: jax.Array
) -> jax.Array:
    del cotangent
    return lib.attention(q, k, v, visible)


def gradients(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: lib.Visible, cotangent: jax.Array
) -> tuple[jax.Array, ...]:
    """Those of q, k and v; a training step computes them after the forward pass, as this does."""
    _, back = jax.vjp(lambda q, k, v: lib.attention(q, k, v, visible), q, k, v)
    return back(cotangent)


def error(found: np.ndarray, reference: np.ndarray, live: np.ndarray) -> float:
    """‖found - reference‖ / ‖reference‖ over what is not padding."""
    found, reference = (np.asarray(x, np.float32)[live] for x in (found, reference))
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))
