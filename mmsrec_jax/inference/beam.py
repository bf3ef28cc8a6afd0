"""Items ranked by writing the next item's keywords: beam search inside of the catalog (*ours*).

An item's score is log p(keywords | prompt): the sum of the log-probabilities that the model gives
the tokens of its keywords, the one that ends the turn among them. Nothing is divided by lengths.

The beams of a user are suffixes of one prompt: its keys and values are computed and kept once for
all of them. Beams that have written a whole text leave for a list of the best texts, so that they
take no room from those that still write. As no token adds to a score, a user is done once no beam
is above the last text of that list. Where the list and the beams hold all texts, it is exact.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.inference import sampler
from mmsrec_jax.inference.forward import in_order
from mmsrec_jax.inference.trie import CatalogTrie
from mmsrec_jax.inputs.pipeline import Source
from mmsrec_jax.models import kv_cache
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.kv_cache import KVCache
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import arrays, interruption, sharding
from mmsrec_jax.runtime.progress import Progress


@dataclasses.dataclass(frozen=True)
class Search:
    """What the beam search compiles for; hashable.

    Attributes:
      width: beams W of a user, and texts that are kept of each.
      depth: tokens of the longest text.
      branches: largest number of children of the root, and of any other node.
    """

    width: int
    depth: int
    branches: tuple[int, int]

    @classmethod
    def of(cls, trie: CatalogTrie, width: int) -> "Search":
        return cls(width, trie.depth, trie.branches)


class Found(NamedTuple):
    """The best texts of B users, best first.

    leaves: int32[B, W], nodes of the trie; -1 where there are no more texts.
    scores: float32[B, W], sums of log-probabilities; -inf there.
    """

    leaves: jax.Array
    scores: jax.Array


class TrieArrays(NamedTuple):
    """A trie on the devices, see `CatalogTrie`."""

    tokens: jax.Array
    first_child: jax.Array


class _Beams(NamedTuple):
    """What a step of the search leaves to the next; a beam of score -inf is none.

    depth: int32[], tokens that beams have written; nodes: int32[B, W]; scores: float32[B, W].
    """

    depth: jax.Array
    cache: KVCache
    nodes: jax.Array
    scores: jax.Array
    found: Found


def search(
    model: MLLM, batch: Batch, trie: TrieArrays, left_out: jax.Array, settings: Search
) -> Found:
    """The best texts after every prompt of `batch`; pure, made to be jitted.

    Args:
      model: its adapters are on.
      batch: one prompt a row (one segment, right-padded with segment 0).
      trie: that `settings` is of.
      left_out: int32[B, H], leaves that the users' lists shall not hold; -1 is none.
      settings: what to compile for.
    """
    rows, length = batch.tokens.shape
    width = settings.width
    slots = length + width * max(settings.depth - 1, 1)  # a text's last token is not read
    cache = kv_cache.init(model.config, rows, slots, model.dtype)
    hidden, cache = model(batch, cache=cache)
    last = sampler.last_slots(batch)
    hidden = hidden[jnp.arange(rows), last][:, None]
    segments = jnp.broadcast_to(batch.segment_ids[jnp.arange(rows), last][:, None], (rows, width))
    suffixes = jnp.broadcast_to(1 + jnp.arange(width, dtype=jnp.int32), (rows, width))
    offset = sampler.next_positions(batch)

    def grow(
        hidden: jax.Array, nodes: jax.Array, scores: jax.Array, found: Found, branches: int
    ) -> tuple[jax.Array, jax.Array, jax.Array, Found]:
        """Every beam by every allowed token: (parents, nodes, scores) of the best W that still
        write, each [B, W], and the best texts."""
        children, after = _children(model.unembed(hidden), nodes, trie, branches)
        after += scores[..., None]
        children, after = (x.reshape(rows, -1) for x in (children, after))
        is_leaf = trie.first_child[children] == trie.first_child[children + 1]
        banned = jnp.any(children[..., None] == left_out[:, None], axis=-1)
        texts = jnp.where(is_leaf & ~banned, after, -jnp.inf)
        found = _best(
            jnp.concatenate([found.scores, texts], axis=1),
            jnp.concatenate([found.leaves, children], axis=1),
            width,
        )
        kept, at = _top(jnp.where(is_leaf, -jnp.inf, after), width)
        return at // branches, jnp.take_along_axis(children, at, axis=1), kept, found

    def unfinished(beams: _Beams) -> jax.Array:
        return jnp.any(beams.scores[:, 0] > beams.found.scores[:, -1])

    def step(beams: _Beams) -> _Beams:
        depth, cache, nodes, scores, found = beams
        position = jnp.broadcast_to((offset + depth - 1)[:, None, None], (rows, 3, width))
        written = Batch(jnp.maximum(trie.tokens[nodes], 0), position, segments, suffixes)
        hidden, cache = model(written, cache=cache)
        parents, nodes, scores, found = grow(hidden, nodes, scores, found, settings.branches[1])
        return _Beams(depth + 1, _reordered(cache, parents, length), nodes, scores, found)

    root = jnp.zeros((rows, 1), jnp.int32)
    none = Found(jnp.full((rows, width), -1), jnp.full((rows, width), -jnp.inf))
    _, nodes, scores, found = grow(
        hidden, root, root.astype(jnp.float32), none, settings.branches[0]
    )
    start = _Beams(jnp.int32(1), cache, nodes, scores, found)
    return jax.lax.while_loop(unfinished, step, start).found


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def search_compiled(
    graphdef: nnx.GraphDef,
    settings: Search,
    mesh: Mesh,
    state: nnx.State,
    batch: Batch,
    trie: TrieArrays,
    left_out: jax.Array,
) -> tuple[jax.Array, Found]:
    """`search` of a split model, jitted, and the rows' indices; both whole on every device."""
    found = search(nnx.merge(graphdef, state), batch.model_inputs(), trie, left_out, settings)
    return jax.lax.with_sharding_constraint((batch.index, found), sharding.replicated(mesh))


def search_rows(
    model: MLLM,
    source: Source,
    trie: CatalogTrie,
    *,
    name: str,
    width: int,
    batch_size: int,
    length: int,
    workers: int,
    mesh: Mesh,
    left_out: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rows int[n], leaves int32[n, W], scores float32[n, W]) batch by batch, as in `Found`.

    Every process gets the rows of all.

    Args:
      source: prompts without images; the trie's texts are answers to them.
      name: for progress lines.
      width: W.
      batch_size: prompts at once, over all processes.
      length: room of a prompt, in tokens.
      left_out: int32[rows, H], leaves that the lists of each row shall not hold; -1 is none.
    """
    graphdef, state = nnx.split(model)
    state = jax.device_put(state, sharding.shardings(state, mesh))
    nodes = TrieArrays(*arrays.put((trie.tokens, trie.first_child), sharding.replicated(mesh)))
    progress = Progress(name, len(source), unit="users")
    dataset = in_order(
        source,
        mesh,
        batch_size=batch_size,
        length=length,
        patches=0,
        workers=workers,
        section="config.evaluation",
    )
    iterator = iter(dataset)
    try:
        for batch in iterator:
            interruption.stop_if_requested()
            # Not around the loop: a mesh that is set when a generator yields is its caller's too.
            with jax.set_mesh(mesh):
                placed = arrays.to_devices((batch, left_out[batch.index]), mesh)
                out = search_compiled(
                    graphdef, Search.of(trie, width), mesh, state, placed[0], nodes, placed[1]
                )
            index, (leaves, scores) = jax.tree.map(arrays.fetch, out)
            real = index >= 0
            progress.update(int(real.sum()))
            yield index[real], leaves[real], scores[real]
    finally:
        iterator.close()


def _children(
    logits: jax.Array, nodes: jax.Array, trie: TrieArrays, branches: int
) -> tuple[jax.Array, jax.Array]:
    """Children of nodes int32[B, N] and their log-probabilities, each [B, N, branches]; -inf where
    a node has fewer. logits: float32[B, N, vocab]; only those of children are normalized."""
    children = trie.first_child[nodes][..., None] + jnp.arange(branches)
    exist = children < trie.first_child[nodes + 1][..., None]
    children = jnp.where(exist, children, 0)
    own = jnp.take_along_axis(logits, jnp.maximum(trie.tokens[children], 0), axis=-1)
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return children, jnp.where(exist, own - total, -jnp.inf)


def _reordered(cache: KVCache, parents: jax.Array, length: int) -> KVCache:
    """What beams have written, in the order of their new beams, of which each is its parent's.

    parents: int32[B, W]. The slots before `length`, the prompt's, are the same for all beams.
    """
    rows, width = parents.shape
    index = parents[None, :, None, :, None, None]

    def moved(stack: jax.Array) -> jax.Array:
        own = stack[:, :, length:]
        by_step = own.reshape(own.shape[0], rows, -1, width, *own.shape[3:])
        by_step = jnp.take_along_axis(by_step, index, axis=3)
        return stack.at[:, :, length:].set(by_step.reshape(own.shape))

    return dataclasses.replace(cache, k=moved(cache.k), v=moved(cache.v))


def _top(scores: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """`top_k`, filled up with -inf where there are fewer: scores and places, each [B, width]."""
    columns = scores.shape[1]
    scores = jnp.pad(scores, [(0, 0), (0, max(width - columns, 0))], constant_values=-jnp.inf)
    # The partitioner would have every device order the rows of all.
    at = sharding.per_device(
        lambda rows: jax.lax.top_k(rows, width)[1],
        (scores, ("batch", "length")),
        out=("batch", "length"),
    )
    return jnp.take_along_axis(scores, at, axis=1), jnp.minimum(at, columns - 1)


def _best(scores: jax.Array, leaves: jax.Array, width: int) -> Found:
    kept, at = _top(scores, width)
    leaves = jnp.take_along_axis(leaves, at, axis=1)
    return Found(jnp.where(kept > -jnp.inf, leaves, -1), kept)
