"""Image-contrastive reward: the image's keywords fit their own image better than other images."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.prompts import Summary, format_summary, tasks
from mmsrec_jax.rl.rewards.base import Reward
from mmsrec_jax.rl.rewards.context import RewardContext
from mmsrec_jax.rl.rewards.inputs import ItemSummaries, PaddedTexts, pad, stacked
from mmsrec_jax.rl.rewards.settings import RewardSettings
from mmsrec_jax.runtime.errors import UserError


class ImageContrastive(Reward):
    """InfoNCE over the item's own image and those of the next items of the batch (*ours*: none of
    the paper's rewards reads the image).

    Reads `config.summarizer.distractors` (other images, K) and `image_tokens` (tokens Ti of the
    image's keywords; what is beyond is not scored).
    """

    name = "image_contrastive"
    origin = "ours"
    default_weight = 0.2
    runs_model = True

    def __init__(self, config: RewardSettings, source: SummarySource) -> None:
        super().__init__(config, source)
        if not source.renderer.patch_width:
            raise UserError(
                f"config.summarizer.weights.{self.name}: the prompts have no images; set it to 0"
            )
        self._distractors, self._image_tokens = config.distractors, config.image_tokens
        self._prompt_length = source.length
        self._chat = source.renderer.prompt_config.chat
        self._templates = source.renderer.prompt_config.templates

    def prepare(self, items: Sequence[ItemSummaries]) -> dict[str, np.ndarray]:
        """Image lines of the summaries: lines int32[B, G, Ti], lengths int32[B, G]; prompts that
        show the item's image and no text: tokens, segment_ids int32[B, L], positions
        int32[B, 3, L]."""
        lines = stacked(
            pad([self._image_line(summary) for summary in item.summaries], self._image_tokens)
            for item in items
        )
        prompts = [self._image_prompt(item) for item in items]
        return {
            "lines": lines.tokens,
            "lengths": lines.lengths,
            **{name: np.stack([prompt[name] for prompt in prompts]) for name in prompts[0]},
        }

    def score(self, context: RewardContext) -> jax.Array:
        """The prompt of image j is read once, with the image lines of items j, j - 1, ..., j - K as
        its continuations."""
        own = context.inputs.own[self.name]
        lines = PaddedTexts(own["lines"], own["lengths"])
        rows, group = lines.lengths.shape
        candidates = self._distractors + 1

        def shifted(x: jax.Array, sign: int) -> jax.Array:
            """[B, K + 1, ...]: x of rows b + sign * k."""
            return jnp.stack([jnp.roll(x, -sign * k, axis=0) for k in range(candidates)], axis=1)

        prompts = Batch(
            own["tokens"], own["positions"], own["segment_ids"], images=context.prompts.images
        )
        lines = jax.tree.map(
            lambda x: shifted(x, -1).reshape(rows, candidates * group, *x.shape[2:]), lines
        )
        logprobs = context.in_microbatches(
            lambda a: jnp.sum(context.logprobs(a[0], a[1].tokens, a[1].lengths), axis=-1)
        )((prompts, lines)).reshape(rows, candidates, group)
        # [j, k, g] is item j - k under image j; item i under image i + k is [i + k, k, g].
        of_item = jnp.stack(
            [jnp.roll(logprobs[:, k], -k, axis=0) for k in range(candidates)], axis=-1
        )
        return info_nce(of_item, shifted(context.inputs.has_image, 1))

    def _image_line(self, summary: Summary) -> np.ndarray:
        line = format_summary([self._chat.clean(word) for word in summary.image], [])
        return self._chat.ids(line.partition("\n")[0])

    def _image_prompt(self, item: ItemSummaries) -> dict[str, np.ndarray]:
        images = [] if item.image is None else [item.image]
        question = tasks.summarize(self._templates, "", bool(images))
        piece = self._chat.encode(self._chat.head + question + self._chat.middle, images)
        room = self._prompt_length - len(piece)
        return {
            "tokens": np.pad(piece.tokens, (0, room)),
            "segment_ids": np.pad(np.ones(len(piece), np.int32), (0, room)),
            "positions": np.pad(piece.positions, ((0, 0), (0, room))),
        }


def info_nce(logprobs: jax.Array, present: jax.Array) -> jax.Array:
    """1 + log p(own image | W) / log(images), clipped to [-1, 1] (*ours*) -> float32[B, G]: 1 when
    the keywords single their image out, 0 at chance.

    Args:
      logprobs: float32[B, G, K + 1], log p_ref(W | image); index 0 is the item's own image.
      present: bool[B, K + 1], which of those images exist. The summaries of an item without an
        image, or without another image beside it, score 0.
    """
    chex.assert_shape(present, (logprobs.shape[0], logprobs.shape[2]))
    images = jnp.sum(present, axis=-1)
    scored = present[:, 0] & (images > 1)
    logits = jnp.where(present[:, None, :], logprobs, -jnp.inf)
    own = logits[..., 0] - jax.nn.logsumexp(jnp.where(scored[:, None, None], logits, 0.0), axis=-1)
    nats = jnp.log(jnp.maximum(images, 2).astype(jnp.float32))[:, None]
    return jnp.where(scored[:, None], jnp.clip(1.0 + own / nats, -1.0, 1.0), 0.0)
