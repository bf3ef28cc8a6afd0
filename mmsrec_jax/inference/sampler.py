"""Image-conditioned sampling: one prefill per prompt, G continuations, one compiled loop."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from mmsrec_jax.models import kv_cache
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import sharding


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What the sampler compiles for; hashable.

    Attributes:
      num_generations: continuations G of every prompt; they share its prefill.
      max_new_tokens: T, an upper bound; the loop stops earlier once every row has ended.
      eos_ids: any of them ends a continuation; the ending token belongs to it.
      pad_id: fills the slots after the end.
      gather_weights: the decoder's are gathered over FSDP once and not for every token; each device
        then holds them as far as they are not divided along `tensor`.
      temperature: 0 is greedy (then top_k and top_p have no meaning).
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: keep the smallest set of most likely tokens with at least this mass; 1 keeps all.
      suppress: tokens never emitted (image slots: a sampled one would ask for a picture).
    """

    num_generations: int
    max_new_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int
    gather_weights: bool
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    suppress: tuple[int, ...] = ()


def chat_sampling(model: MLLM, tokenizer: Any, stop_id: int, **options: Any) -> Sampling:
    """Sampling of a turn that ends with `stop_id`; never emits what stands for an image, nor rows
    of the embedding that only pad the vocabulary.

    options: the other fields of `Sampling`.
    """
    ends = {stop_id, tokenizer.eos_token_id} - {None}
    config = model.config
    image = (config.image_token_id, config.vision_start_token_id, config.vision_end_token_id)
    unused = range(len(tokenizer), config.text.vocab_size)
    return Sampling(
        eos_ids=tuple(sorted(ends)),
        pad_id=stop_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        suppress=(*(i for i in image if i is not None), *unused),
        **options,
    )


class Generation(NamedTuple):
    """Continuations of B prompts; every array is 0 (tokens: pad_id) after a row's end.

    tokens: int32[B, G, T].
    logprobs: float32[B, G, T], log pi(token) of the model itself: temperature 1, nothing cut. This
      is what a policy-gradient ratio needs, since the training forward yields the same quantity.
    sampling_logprobs: float32[B, G, T], under the distribution drawn from (after temperature,
      top_k, top_p and suppression); equal to `logprobs` at temperature 1 with nothing cut, 0 when
      greedy.
    entropies: float32[B, G, T], in nats, of the model itself at each emitted token.
    lengths: int32[B, G], tokens emitted, the ending one included.
    """

    tokens: jax.Array
    logprobs: jax.Array
    sampling_logprobs: jax.Array
    entropies: jax.Array
    lengths: jax.Array


class _Carry(NamedTuple):
    """What a step of decoding leaves to the next, of N = B * G rows.

    step: int32[], the next one; token: int32[N], the last one drawn; done: bool[N]; out: [N, ...].
    """

    step: jax.Array
    cache: kv_cache.KVCache
    token: jax.Array
    done: jax.Array
    out: Generation


def truncate(logits: jax.Array, *, top_k: int, top_p: float) -> jax.Array:
    """Sets to -inf what top_k, then top_p (nucleus, Holtzman et al. 2020) leave out.

    logits: float32[..., V]. Ties with the last kept logit are kept.
    """
    if top_k:
        kept = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0]
        logits = jnp.where(logits >= kept[..., -1:], logits, -jnp.inf)
    if top_p < 1.0:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        probs = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        last = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= last, logits, -jnp.inf)
    return logits


def draw(
    logits: jax.Array, keys: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One token per row -> (tokens int32[N], logprobs, sampling_logprobs, entropies float32[N]).

    logits: float32[N, V]; keys: N PRNG keys, one per row.
    """
    policy = jax.nn.log_softmax(logits, axis=-1)
    entropies = -jnp.sum(jnp.exp(policy) * policy, axis=-1)
    allowed = logits
    if sampling.suppress:
        allowed = logits.at[:, jnp.array(sampling.suppress)].set(-jnp.inf)
    if sampling.temperature == 0.0:
        tokens = jnp.argmax(allowed, axis=-1)
        sampling_logprobs = jnp.zeros(tokens.shape, jnp.float32)
    else:
        allowed = truncate(
            allowed / sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
        )
        tokens = jax.vmap(jax.random.categorical)(keys, allowed)
        sampling_logprobs = _at(jax.nn.log_softmax(allowed, axis=-1), tokens)
    return tokens.astype(jnp.int32), _at(policy, tokens), sampling_logprobs, entropies


def generate(
    model: MLLM, batch: Batch, rows: jax.Array, key: jax.Array, sampling: Sampling
) -> Generation:
    """Continues every prompt of `batch` `sampling.num_generations` times; pure, made to be jitted.

    Args:
      model: its adapters are on.
      batch: one prompt per row (one segment, right-padded with segment 0), with or without patches.
      rows: int32[B], an identity per row (the item index): a row's draws depend on (key, identity,
        sample, step) alone, so neither the rest of the batch nor its order moves them.
      key: PRNG key.
      sampling: what to compile for.
    """
    if sampling.gather_weights:
        graphdef, decoder, *rest = nnx.split(model, nnx.PathContains("text"), ...)
        model = nnx.merge(graphdef, sharding.gathered(decoder), *rest)
    count, length = batch.tokens.shape
    chex.assert_shape(rows, (count,))
    group, steps = sampling.num_generations, sampling.max_new_tokens
    cache = kv_cache.init(model.config, count, length + steps, model.dtype)
    hidden, cache = model(batch, cache=cache)
    cache = kv_cache.repeat(cache, group)
    last = last_slots(batch)
    hidden = jnp.repeat(hidden[jnp.arange(count), last][:, None], group, axis=0)
    offset = jnp.repeat(next_positions(batch), group)
    segment = jnp.repeat(batch.segment_ids[jnp.arange(count), last], group)[:, None]
    row_keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    row_keys = jax.vmap(
        lambda row: jax.vmap(lambda sample: jax.random.fold_in(row, sample))(jnp.arange(group))
    )(row_keys).reshape(-1)
    ends = jnp.array(sampling.eos_ids, jnp.int32)

    def emit(
        step: jax.Array | int, hidden: jax.Array, done: jax.Array, out: Generation
    ) -> tuple[jax.Array, jax.Array, Generation]:
        keys = jax.vmap(lambda row: jax.random.fold_in(row, step))(row_keys)
        token, logprobs, sampling_logprobs, entropies = draw(
            model.unembed(hidden)[:, 0], keys, sampling
        )
        token = jnp.where(done, sampling.pad_id, token)

        def put(array: jax.Array, values: jax.Array) -> jax.Array:
            return array.at[:, step].set(jnp.where(done, 0.0, values))

        out = Generation(
            tokens=out.tokens.at[:, step].set(token),
            logprobs=put(out.logprobs, logprobs),
            sampling_logprobs=put(out.sampling_logprobs, sampling_logprobs),
            entropies=put(out.entropies, entropies),
            lengths=out.lengths + ~done,
        )
        return token, done | jnp.any(token[:, None] == ends, axis=-1), out

    def unfinished(carry: _Carry) -> jax.Array:
        return (carry.step < steps) & ~jnp.all(carry.done)

    def step_once(carry: _Carry) -> _Carry:
        step, cache, token, done, out = carry
        position = jnp.broadcast_to((offset + step - 1)[:, None, None], (token.shape[0], 3, 1))
        token_batch = Batch(token[:, None], position, segment)
        hidden, cache = model(token_batch, cache=cache)
        token, done, out = emit(step, hidden, done, out)
        return _Carry(step + 1, cache, token, done, out)

    total = count * group
    blank = jnp.zeros((total, steps), jnp.float32)
    out = Generation(
        tokens=jnp.full((total, steps), sampling.pad_id, jnp.int32),
        logprobs=blank,
        sampling_logprobs=blank,
        entropies=blank,
        lengths=jnp.zeros(total, jnp.int32),
    )
    token, done, out = emit(0, hidden, jnp.zeros(total, bool), out)
    start = _Carry(jnp.int32(1), cache, token, done, out)
    out = jax.lax.while_loop(unfinished, step_once, start).out
    return jax.tree.map(lambda a: a.reshape(count, group, *a.shape[1:]), out)


@functools.partial(jax.jit, static_argnums=(0, 1))
def generate_compiled(
    graphdef: nnx.GraphDef,
    sampling: Sampling,
    state: nnx.State,
    batch: Batch,
    rows: jax.Array,
    key: jax.Array,
) -> Generation:
    """`generate` of a split model, jitted: one program for each model, sampling and shape."""
    return generate(nnx.merge(graphdef, state), batch, rows, key, sampling)


def last_slots(batch: Batch) -> jax.Array:
    """int32[B]: slot of each row's last token (0 for an empty row)."""
    slots = jnp.arange(batch.tokens.shape[1])
    return jnp.max(jnp.where(batch.segment_ids > 0, slots, 0), axis=1)


def next_positions(batch: Batch) -> jax.Array:
    """int32[B]: the M-RoPE position, on all three axes, of the token that follows each row."""
    live = batch.segment_ids[:, None] > 0
    return jnp.max(jnp.where(live, batch.positions, -1), axis=(1, 2)) + 1


def _at(values: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]
