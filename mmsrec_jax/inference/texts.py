"""Texts that the model writes, one for each row of a source, stored so that a run can go on."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.inference import sampler
from mmsrec_jax.inference.forward import in_order
from mmsrec_jax.inference.sampler import Sampling
from mmsrec_jax.inference.text_store import Key, TextStore, prompt_digest
from mmsrec_jax.inputs.example import Example
from mmsrec_jax.inputs.item_renderer import ItemRenderer
from mmsrec_jax.inputs.pipeline import Source
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import arrays, interruption, sharding
from mmsrec_jax.runtime.progress import Progress


class PromptSource(Source, Protocol):
    """A source of prompts; `length` is the room of one in tokens."""

    length: int
    renderer: ItemRenderer


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How texts are written.

    Attributes:
      batch_size: prompts at once, over all processes.
      patches: room for the vision patches of a prompt, 0 for prompts without images.
      section: of the settings that these sizes are from, such as "config.understanding", for
        errors.
      max_new_tokens, gather_weights, temperature, top_k, top_p: see `sampler.Sampling`; greedy
        unless a temperature is given.
      seed: of what is sampled. A row's text depends on it, on the prompt and on the row's place in
        the source, not on what is written beside it.
    """

    batch_size: int
    patches: int
    max_new_tokens: int
    gather_weights: bool
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    section: str = ""


def write_texts(
    store: TextStore,
    source: PromptSource,
    keys: Sequence[Key],
    make_model: Callable[[], MLLM],
    tokenizer: Any,
    *,
    name: str,
    decoding: Decoding,
    mesh: Mesh,
    fields: Callable[[int, str], Mapping[str, Any]] = lambda row, text: {"written": text},
    digest: Callable[[int], str] | None = None,
) -> int:
    """Writes the text of every row of `source` that `store` lacks or has of other inputs.

    Each batch is on disk before the next begins: a call after a kill goes on, and the file ends as
    if there had been no kill. All processes call it together.

    Args:
      keys: what the text of each row is of, aligned with the rows of `source`.
      make_model: called only when there is something to write.
      name: for progress lines.
      fields: (row, text) -> what its line says beside the key.
      digest: row -> hash of all that its text depends on; None takes that of the prompt, for which
        the prompt is made once more.

    Returns:
      How many texts were written.
    """
    if digest is None:
        digest = functools.partial(_prompt_digest, source)
    rows = store.outdated(keys, digest)
    if not rows:
        return 0
    progress = Progress(name, len(rows), unit="texts")
    for batch in generate(make_model(), tokenizer, source, rows, decoding=decoding, mesh=mesh):
        store.append((keys[row], fields(row, text), digest(row)) for row, text in batch)
        progress.update(len(batch))
    store.compact()
    return len(rows)


def generate(
    model: MLLM,
    tokenizer: Any,
    source: PromptSource,
    rows: Sequence[int],
    *,
    decoding: Decoding,
    mesh: Mesh,
) -> Iterator[list[tuple[int, str]]]:
    """(row, what the model writes after its prompt) of these rows of `source`, batch by batch.

    In the order of `rows`, which ascend. Every process gets those of all.
    """
    sampling = make_sampling(
        model,
        tokenizer,
        source,
        num_generations=1,
        max_new_tokens=decoding.max_new_tokens,
        temperature=decoding.temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        gather_weights=decoding.gather_weights,
    )
    graphdef, state = nnx.split(model)
    dataset = in_order(
        Subset(source, rows),
        mesh,
        batch_size=decoding.batch_size,
        length=source.length,
        patches=decoding.patches,
        workers=0,
        section=decoding.section,
    )
    key = jax.random.key(decoding.seed)
    state = jax.device_put(state, sharding.shardings(state, mesh))
    iterator = iter(dataset)
    try:
        for batch in iterator:
            interruption.stop_if_requested()
            # Not around the loop: a mesh that is set when a generator yields is its caller's too.
            with jax.set_mesh(mesh):
                prompts, index = arrays.to_devices((batch.model_inputs(), batch.index), mesh)
                out = sampler.generate_compiled(graphdef, sampling, state, prompts, index, key)
            texts = tokenizer.batch_decode(arrays.fetch(out.tokens)[:, 0])
            found = zip(arrays.fetch(index).tolist(), texts, strict=True)
            yield sorted((row, text) for row, text in found if row >= 0)
    finally:
        iterator.close()


class Subset:
    """Some rows of a source; `Example.index` is the place of the row in the whole source."""

    def __init__(self, source: PromptSource, rows: Sequence[int]):
        self._source, self._rows = source, np.asarray(rows)
        self.patch_width = source.patch_width

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, row: int, draw: int) -> Example:
        del draw
        return _prompt(self._source, int(self._rows[row]))


def _prompt(source: PromptSource, row: int) -> Example:
    """The same for a row whatever else is written."""
    return dataclasses.replace(source.example(row, row), index=row)


def _prompt_digest(source: PromptSource, row: int) -> str:
    return prompt_digest(_prompt(source, row))


def make_sampling(model: MLLM, tokenizer: Any, source: PromptSource, **options: Any) -> Sampling:
    """Sampling of answers: ends with the turn; see `sampler.chat_sampling`."""
    stop = source.renderer.prompt_config.chat.stop_id
    return sampler.chat_sampling(model, tokenizer, stop, **options)
