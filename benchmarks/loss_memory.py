"""Temporary memory of the gradient of the token loss as the batch grows, here and with all logits.

    python benchmarks/loss_memory.py                                   (or: make bench-loss-memory)

Compiles the gradient with respect to hidden states and head, for a decoder of Qwen2.5-VL-3B's width
and vocabulary, and prints what XLA sets aside for it beside arguments and results. Nothing is run
and no weights exist, so it takes a minute on any machine. `naive` is the log-softmax of the logits
of every token, as a model that returns logits leads to.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx

from mmsrec_jax.models.config import DecoderConfig, MLLMConfig
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.models.token_logprobs import token_logprobs

_VOCAB = flags.DEFINE_integer("vocab", 151936, "Tokens in the vocabulary.")
_HIDDEN = flags.DEFINE_integer("hidden", 2048, "Width of the decoder.")
_ROWS = flags.DEFINE_integer("rows", 8, "Rows of a batch.")
_LENGTHS = flags.DEFINE_multi_integer("length", [128, 512, 2048, 8192], "Tokens of a row.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["bfloat16", "float32"], "Of the computation; a CPU widens bfloat16 again."
)
_OUT = flags.DEFINE_string("out", None, "Where to write the figures as JSON.")


def naive(model: MLLM, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
    """What `token_logprobs` gives, of all logits at once."""
    logprobs = jax.nn.log_softmax(model.unembed(hidden), axis=-1)[:, :-1]
    picked = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(picked, [(0, 0), (1, 0)])


def temporary(logprobs, rows: int, length: int) -> int:
    """Bytes beside arguments and results of the compiled gradient of the sum of `logprobs`."""
    text = DecoderConfig(
        vocab_size=_VOCAB.value, hidden=_HIDDEN.value, layers=1, heads=1, kv_heads=1, head_dim=8,
        intermediate=8, rope_kind="1d", tied=True,
    )  # fmt: skip
    config = MLLMConfig(text, None, 0, None, None)
    model = nnx.eval_shape(lambda: MLLM(config, rngs=nnx.Rngs(0), dtype=_DTYPE.value))
    graphdef, state = nnx.split(model)

    def total(state, hidden, tokens):
        return -jnp.sum(logprobs(nnx.merge(graphdef, state), hidden, tokens))

    hidden = jax.ShapeDtypeStruct((rows, length, _HIDDEN.value), _DTYPE.value)
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    compiled = jax.jit(jax.grad(total, (0, 1))).lower(state, hidden, tokens).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main(argv: list[str]) -> None:
    del argv
    print(f"vocabulary {_VOCAB.value:,}, width {_HIDDEN.value:,}, {_DTYPE.value}; MiB")
    print(f"{'tokens':>10}{'ours':>10}{'naive':>10}{'logits in float32':>20}")
    found = []
    for length in _LENGTHS.value:
        tokens = _ROWS.value * length
        ours, theirs = (temporary(f, _ROWS.value, length) for f in (token_logprobs, naive))
        found.append({"tokens": tokens, "ours": ours, "naive": theirs})
        logits = tokens * _VOCAB.value * 4
        cells = (f"{n / 2**20:,.0f}" for n in (ours, theirs, logits))
        print(f"{tokens:>10,}{next(cells):>10}{next(cells):>10}{next(cells):>20}", flush=True)
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    app.run(main)
