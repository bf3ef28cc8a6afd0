"""The sampler on this device: greedy with a cache against full forwards, draws against chi-square.

A greedy token may differ from the argmax of a full forward where two logits are nearly equal;
`shortfall` is by how much the chosen logit is below the largest one, at most.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from flax import nnx

from benchmarks.accelerator import small_models
from benchmarks.accelerator.record import Ask, attempt
from mmsrec_jax.inference import sampler
from mmsrec_jax.inference.sampler import Generation, Sampling
from mmsrec_jax.models.batch import Batch

TITLE = "Sampler: greedy against full forwards, frequencies against probabilities"
SECONDS = 35
SHORTFALL = {"float32": 1e-3, "bfloat16": 5e-2}  # logits have a standard deviation of about .5
LEAST_P = 1e-3
CONFIG = small_models.FAMILIES["qwen2_5_vl"]
NEVER = (small_models.IMAGE, small_models.START, small_models.END)
LENGTH = 64  # of a prompt


def run(ask: Ask) -> None:
    rows, steps, draws = (2, 8, 1000) if ask.tiny else (8, 64, 20000)
    for dtype in SHORTFALL:
        attempt(ask, f"greedy, {dtype}", lambda: _greedy(dtype, rows, steps))  # noqa: B023
    attempt(ask, "frequencies, float32", lambda: _frequencies(draws))


def _sampling(**options: Any) -> Sampling:
    return Sampling(eos_ids=(3,), pad_id=0, gather_weights=False, suppress=NEVER, **options)


def _generate(model: nnx.Module, batch: Batch, sampling: Sampling) -> Generation:
    rows = jnp.arange(len(batch.tokens), dtype=jnp.int32)
    graphdef, state = nnx.split(model)
    found = sampler.generate_compiled(graphdef, sampling, state, batch, rows, jax.random.key(0))
    return jax.tree.map(np.asarray, found)


def _greedy(dtype: str, rows: int, steps: int) -> dict[str, Any]:
    model = small_models.model(CONFIG, dtype)
    batch = small_models.prompts(CONFIG, rows, LENGTH)
    sampling = _sampling(num_generations=1, max_new_tokens=steps, temperature=0.0)
    found = _generate(model, batch, sampling)
    joined = _continued(batch, found, steps)
    full = np.array(jax.jit(small_models.logits, static_argnums=0)(*nnx.split(model), joined))
    full[..., list(NEVER)] = -np.inf
    shortfall, tokens, equal = 0.0, 0, 0
    for row in range(rows):
        start = int((batch.segment_ids[row] > 0).sum())
        for step in range(int(found.lengths[row, 0])):
            logits, token = full[row, start + step - 1], int(found.tokens[row, 0, step])
            shortfall = max(shortfall, float(logits.max() - logits[token]))
            tokens, equal = tokens + 1, equal + (int(logits.argmax()) == token)
    limit = SHORTFALL[dtype]
    return {
        "tokens": tokens, "equal": equal, "shortfall": shortfall, "limit": limit,
        "result": "pass" if shortfall <= limit else "FAIL",
    }  # fmt: skip


def _continued(batch: Batch, found: Generation, steps: int) -> Batch:
    """The prompts followed by what was written, as plain rows."""
    tokens, segments = (np.pad(x, ((0, 0), (0, steps))) for x in (batch.tokens, batch.segment_ids))
    positions = np.pad(batch.positions, ((0, 0), (0, 0), (0, steps)))
    for row, length in enumerate(found.lengths[:, 0]):
        start = int((batch.segment_ids[row] > 0).sum())
        span = slice(start, start + int(length))
        tokens[row, span] = found.tokens[row, 0, :length]
        segments[row, span] = 1
        after = batch.positions[row, :, :start].max() + 1
        positions[row, :, span] = after + np.arange(length)
    return dataclasses.replace(batch, tokens=tokens, segment_ids=segments, positions=positions)


def _frequencies(draws: int) -> dict[str, Any]:
    """First tokens of one prompt, tempered and cut."""
    model, batch = small_models.model(CONFIG, "float32"), small_models.prompts(CONFIG, 1, LENGTH)
    sampling = _sampling(
        num_generations=draws, max_new_tokens=1, temperature=0.7, top_k=24, top_p=0.9
    )
    tokens = _generate(model, batch, sampling).tokens.ravel()
    full = jax.jit(small_models.logits, static_argnums=0)(*nnx.split(model), batch)
    last = int((batch.segment_ids[0] > 0).sum()) - 1
    logits = np.array(full, np.float64)[0, last] / 0.7
    logits[list(NEVER)] = -np.inf
    order = np.argsort(-logits)[:24]
    probabilities = np.exp(logits[order]) / np.exp(logits[order]).sum()
    kept = order[: np.searchsorted(np.cumsum(probabilities), 0.9) + 1]
    expected = np.exp(logits[kept]) / np.exp(logits[kept]).sum() * draws
    counts = np.bincount(tokens, minlength=small_models.VOCAB)
    outside = int(draws - counts[kept].sum())
    p = float(scipy.stats.chisquare(counts[kept], expected).pvalue) if not outside else 0.0
    return {
        "tokens": draws, "kinds": len(kept), "outside": outside, "p_value": p, "limit": LEAST_P,
        "result": "pass" if p >= LEAST_P else "FAIL",
    }  # fmt: skip
