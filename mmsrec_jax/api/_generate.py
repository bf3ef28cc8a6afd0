"""Text from a model: prompts and images in, text out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np
from flax import nnx

from mmsrec_jax.api import _conversation
from mmsrec_jax.inference import sampler
from mmsrec_jax.inference.sampler import Sampling
from mmsrec_jax.inputs import example
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.prompts import Chat
from mmsrec_jax.prompts.chat_template import ANSWER
from mmsrec_jax.prompts.templates import IMAGE
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import MAX_SEED, check_number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]


def generate(
    model: MLLM,
    tokenizer: "PreTrainedTokenizerBase | str | Path",
    prompts: Sequence[Prompt],
    images: Sequence[Sequence[np.ndarray]] | None = None,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
) -> list[str]:
    """What the model answers to each prompt: one text a prompt.

    The prompts are written in the tokenizer's chat template. Prefill and all steps are one compiled
    program. Rows, tokens and patches are padded to powers of two, so that calls share programs.

    Args:
      model: from `load`; adapters are on.
      tokenizer: a transformers tokenizer, or the model's directory (which is read at each call).
      prompts: each a text, or a conversation of messages `{"role": ..., "content": ...}`. Content
        is a text or a list of parts `{"type": "text", "text": ...}` and `{"type": "image"}`.
      images: for each prompt the uint8 [height, width, 3] images, in the order of its image parts.
        They stand before a prompt that is a text.
      max_new_tokens: upper bound; a text ends earlier where the model ends its turn. Another value
        is another program, as are another temperature, top_k and top_p.
      temperature: 0 takes the most likely token.
      top_k, top_p: draw from the k most likely tokens, or from the likeliest that together have
        this probability; 0 and 1 keep all.
      seed: of the draws. A prompt's draws depend on its place in `prompts`, not on its neighbors.
      batch_size: prompts at a time.

    Raises:
      UserError: images that do not fit the prompts or are no uint8 RGB, a message part of another
        type, a tokenizer without a chat template, or a number out of its range.

    >>> model = mmsrec_jax.load("models/tiny")
    >>> prompts = ["linen bag", "oak lamp"]
    >>> answers = mmsrec_jax.generate(model, "models/tiny", prompts, max_new_tokens=8)
    >>> len(answers)
    2

    A photo before the question, and the same as a conversation:

    >>> photo = np.zeros((56, 56, 3), np.uint8)
    >>> parts = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    >>> prompts = ["What is this?", [{"role": "user", "content": parts}]]
    >>> images = [[photo], [photo]]
    >>> first, second = mmsrec_jax.generate(
    ...     model, "models/tiny", prompts, images, max_new_tokens=8
    ... )
    >>> first == second
    True
    """
    if isinstance(prompts, str):
        raise UserError("prompts is one text; give a list of them")
    check_number("max_new_tokens", max_new_tokens, low=1, high=100_000)
    check_number("temperature", temperature, float, low=0, high=100)
    check_number("top_k", top_k, low=0, high=10_000_000)
    check_number("top_p", top_p, float, low=1e-6, high=1)
    check_number("seed", seed, low=0, high=MAX_SEED)
    check_number("batch_size", batch_size, low=1, high=1_000_000)
    images = [()] * len(prompts) if images is None else images
    if len(images) != len(prompts):
        raise UserError(f"{len(images)} lists of images for {len(prompts)} prompts; give as many")
    tokenizer = _conversation.open_tokenizer(tokenizer)
    chat = Chat.of(model, tokenizer)
    sampling = sampler.chat_sampling(
        model,
        tokenizer,
        chat.stop_id,
        num_generations=1,
        max_new_tokens=max_new_tokens,
        gather_weights=False,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    rows = []
    asked = [_messages(prompt, len(of_row)) for prompt, of_row in zip(prompts, images, strict=True)]
    for row, (text, of_row) in enumerate(zip(_written(chat, asked), images, strict=True)):
        piece = _conversation.encode(model, chat, text, of_row, row)
        rows.append(example.sequence(piece, np.zeros(0, np.int32)))
    graphdef, state = nnx.split(model)
    key, texts = jax.random.key(seed), []
    with _conversation.on_mesh_of(model):
        for part in _conversation.chunks(len(rows), batch_size):
            batch = _conversation.make_batch(rows[part]).model_inputs()
            identities = np.arange(part.start, part.start + len(batch.tokens), dtype=np.int32)
            identities = np.minimum(identities, part.stop - 1)
            out = sampler.generate_compiled(graphdef, sampling, state, batch, identities, key)
            found = np.asarray(out.tokens)[: part.stop - part.start, 0]
            texts += [_text(tokenizer, tokens, sampling) for tokens in found]
    return texts


def _messages(prompt: Prompt, num_images: int) -> list[Message]:
    """The conversation with its image parts as `IMAGE` marks in the text."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": IMAGE * num_images + prompt}]
    for message in prompt:
        if not isinstance(message.get("role"), str) or "content" not in message:
            raise UserError(f'{message!r}: write {{"role": "user", "content": ...}}')
    return [{**message, "content": _content(message["content"])} for message in prompt]


def _content(content: str | Sequence[Mapping[str, str]]) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if part.get("type") not in ("text", "image"):
            raise UserError(f"a message part is of type {part.get('type')!r}: use text or image")
    return "".join(IMAGE if part["type"] == "image" else part["text"] for part in content)


def _written(chat: Chat, asked: Sequence[Sequence[Message]]) -> list[str]:
    """The conversations up to where the answers begin, in the words of the chat template."""
    answer = {"role": "assistant", "content": ANSWER}
    written = chat.write([[*messages, answer] for messages in asked])
    return [text.partition(ANSWER)[0] for text in written]


def _text(tokenizer: "PreTrainedTokenizerBase", tokens: np.ndarray, sampling: Sampling) -> str:
    ends = (*sampling.eos_ids, sampling.pad_id)
    kept = [token for token in tokens.tolist() if token not in ends]
    return cast(str, tokenizer.decode(kept, skip_special_tokens=True))
