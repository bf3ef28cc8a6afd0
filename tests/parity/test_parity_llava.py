"""Live against transformers on CPU torch: LLaVA with each tower, and InternVL3.

Run with `make parity`; skipped without torch.
"""

import importlib

import jax
import numpy as np
import pytest
from flax import nnx

from mmsrec_jax import models
from mmsrec_jax.decoding import sampler
from mmsrec_jax.models import api, names
from mmsrec_jax.models.loss import token_logprobs
from mmsrec_jax.models.mllm import MLLM

torch = pytest.importorskip(
    "torch", reason="live parity needs torch and transformers (make parity)"
)
hf = importlib.import_module("golden.make_llava")

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=hf.MODELS)
def pair(request, tmp_path_factory):
    """(name, transformers model, ours loaded from its directory)."""
    directory = tmp_path_factory.mktemp(request.param)
    theirs = hf.tiny_model(hf.tiny_config(request.param), seed=1)
    theirs.save_pretrained(directory)
    hf.image_processor(request.param).save_pretrained(directory)
    return request.param, theirs, models.load(directory)


def make_rows(config, seed, counts, text_lengths=()):
    """Rows of tokens with so many images each, then rows of text alone."""
    rng = np.random.default_rng(seed)
    sizes = [(24, 40), (37, 16), (9, 60), (16, 16)]
    images = [hf.random_images(seed + i, sizes[i : i + n]) for i, n in enumerate(counts)]
    rows = [hf.row(rng, n, hf.slots(config)) for n in counts]
    rows += [rng.integers(1, hf.IMAGE, n).tolist() for n in text_lengths]
    return rows, images + [[] for _ in text_lengths]


def pad(rows, side, length=None):
    length = length or max(map(len, rows))
    ids = np.zeros((len(rows), length), np.int64)
    mask = np.zeros_like(ids)
    for b, tokens in enumerate(rows):
        place = slice(0, len(tokens)) if side == "right" else slice(length - len(tokens), length)
        ids[b, place], mask[b, place] = tokens, 1
    return ids, mask


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits(pair, side):
    """No image, one and two in a row; rows of different lengths."""
    name, theirs, ours = pair
    rows, images = make_rows(theirs.config, 3, [2, 1], [5, 17])
    ids, mask = pad(rows, side)
    with torch.no_grad():
        expected = hf.hf_logits(theirs, name, ids, mask, images).numpy()
    kept = mask.astype(bool)
    error = np.abs(models.logits(ours, ids, mask, images) - expected)[kept].max()
    print(f"{name}, {side}: max abs difference {error:.2e}, logits std {expected[kept].std():.2f}")
    assert expected[kept].std() > 0.5
    assert error <= TOLERANCE


def test_text_alone(pair):
    name, theirs, ours = pair
    rows, images = make_rows(theirs.config, 4, [], [9, 14])
    ids, mask = pad(rows, "right")
    with torch.no_grad():
        expected = hf.hf_logits(theirs, name, ids, mask, images).numpy()
    difference = np.abs(models.logits(ours, ids, mask, images) - expected)
    assert difference[mask.astype(bool)].max() <= TOLERANCE


def test_the_image_moves_the_logits_equally(pair):
    """Another image changes both models' logits by far more than the tolerance, and alike."""
    name, theirs, ours = pair
    rows, images = make_rows(theirs.config, 6, [1])
    ids, mask = pad(rows, "right")
    other = [[255 - images[0][0]]]
    moved = models.logits(ours, ids, mask, other) - models.logits(ours, ids, mask, images)
    with torch.no_grad():
        expected = hf.hf_logits(theirs, name, ids, mask, other)
        expected -= hf.hf_logits(theirs, name, ids, mask, images)
    assert np.abs(moved).max() > 1000 * TOLERANCE
    np.testing.assert_allclose(moved, expected.numpy(), atol=2 * TOLERANCE)


def test_packed_rows(pair):
    """Every segment of a packed row has the logits transformers gives its example alone."""
    name, theirs, ours = pair
    rows, images = make_rows(theirs.config, 9, [1, 2], [6])
    singles = [api.make_batch(ours, *pad([row], "right"), [own])
               for row, own in zip(rows, images, strict=True)]  # fmt: skip
    packed = {
        key: np.concatenate([one[key] for one in singles if key in one], -1 if axis < 0 else axis)
        for key, axis in (("tokens", 1), ("positions", 2), ("patches", 1),
                          ("patch_hw", 1), ("patch_image_ids", 1), ("patch_window_ids", 1))
    }  # fmt: skip
    packed["segment_ids"] = np.repeat([1, 2, 3], [len(row) for row in rows])[None].astype(np.int32)
    logits = np.asarray(api._logits(*nnx.split(ours), packed))[0]
    start = 0
    for row, own in zip(rows, images, strict=True):
        with torch.no_grad():
            expected = hf.hf_logits(theirs, name, *pad([row], "right"), [own]).numpy()[0]
        assert np.abs(logits[start : start + len(row)] - expected).max() <= TOLERANCE
        start += len(row)


def test_greedy_generation(pair):
    """32 tokens after prompts of different lengths, with and without images."""
    name, theirs, ours = pair
    rows, images = make_rows(theirs.config, 8, [2, 1], [7])
    ids, mask = pad(rows, "left")
    with torch.no_grad():
        expected = theirs.generate(
            **hf.hf_inputs(name, ids, mask, images), max_new_tokens=32, min_new_tokens=32,
            do_sample=False, suppress_tokens=[hf.IMAGE],
        ).numpy()[:, ids.shape[1] :]  # fmt: skip
    sampling = sampler.Sampling(
        samples=1, max_new_tokens=32, eos_ids=(), pad_id=0, temperature=0.0, suppress=(hf.IMAGE,)
    )
    graphdef, state = nnx.split(ours)
    batch = api.make_batch(ours, *pad(rows, "right"), images)
    out = sampler.compiled(graphdef, sampling)(state, {}, batch, np.arange(3), jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(out.tokens)[:, 0], expected)


def test_gradients_of_the_answer_only_loss(pair):
    """Of every parameter that the loss depends on, in both models."""
    name, theirs, ours = pair
    rows, images = make_rows(theirs.config, 7, [2, 1], [11])
    ids, mask = pad(rows, "right")
    weights = np.zeros(ids.shape, np.float32)
    for b, row in enumerate(rows):
        weights[b, len(row) - 4 : len(row)] = 1 / 12

    theirs.zero_grad()
    logits = hf.hf_logits(theirs, name, ids, mask, images)
    chosen = torch.log_softmax(logits, -1)[:, :-1].gather(-1, torch.tensor(ids)[:, 1:, None])
    (-(chosen[..., 0] * torch.tensor(weights)[:, 1:]).sum()).backward()
    expected = {names.canonical(n): p.grad for n, p in theirs.named_parameters()}

    graphdef, state = nnx.split(ours)
    batch = api.make_batch(ours, ids, mask, images)

    @jax.jit
    @jax.grad
    def gradient(state):
        model = nnx.merge(graphdef, state)
        return -(token_logprobs(model, model(batch), batch["tokens"]) * weights).sum()

    grads = {".".join(path): v for path, v in nnx.to_flat_state(gradient(state))}
    compared = {}
    for leaf in names.leaves(ours.config):
        mine = np.asarray(grads[leaf.path].get_value())
        for layer in range(mine.shape[0] if leaf.stacked else 1):
            part = mine[layer] if leaf.stacked else mine
            tensor = leaf.name.format(layer)
            compared[tensor] = part, leaf.read(expected.pop(tensor).numpy(), part.shape)
    # What has no gradient there and no place here is what the features do not depend on.
    assert all(grad is None and names.ignored(tensor, ours.config) or tensor == "lm_head.weight"
               for tensor, grad in expected.items())  # fmt: skip
    scale = np.sqrt(np.mean([np.linalg.norm(theirs) ** 2 for _, theirs in compared.values()]))
    assert scale > 1e-2
    worst = max(
        np.linalg.norm(mine - reference) / max(np.linalg.norm(reference), 1e-3 * scale)
        for mine, reference in compared.values()
    )
    print(f"{name}: {len(compared)} tensors, worst relative norm {worst:.2e}")
    assert worst <= 1e-3


def test_published_config_asks_for_the_same_tensors():
    """Names and shapes of LLaVA-1.5-7B, whose text_config leaves out what Llama assumes."""
    raw = {
        "model_type": "llava",
        "image_token_index": 32000,
        "text_config": {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5},
        "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024,
                          "image_size": 336, "intermediate_size": 4096, "patch_size": 14,
                          "num_attention_heads": 16, "num_hidden_layers": 24},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }  # fmt: skip
    config = names.config_from_hf(raw)
    assert (config.text.layers, config.text.kv_heads, config.vision.slots) == (32, 32, 576)
    ours = nnx.eval_shape(
        lambda: MLLM(config, rngs=nnx.Rngs(0), param_dtype="bfloat16", dtype="bfloat16")
    )
    shapes = {".".join(path): v.shape for path, v in nnx.to_flat_state(nnx.state(ours))}
    leaves = list(names.leaves(config))
    assert {leaf.path for leaf in leaves} == set(shapes)
    asked = {}
    for leaf in leaves:
        count, *shape = shapes[leaf.path] if leaf.stacked else (1, *shapes[leaf.path])
        for layer in range(count):
            asked[leaf.name.format(layer)] = leaf.tensor_shape(tuple(shape))
    with torch.device("meta"):
        theirs = hf.transformers.LlavaForConditionalGeneration(hf.LlavaConfig(**raw))
    held = {names.canonical(n): tuple(p.shape) for n, p in theirs.named_parameters()}
    unused = {name for name in held if names.ignored(name, config)}
    assert unused == {name for name in held if "post_layernorm" in name or ".layers.23." in name
                      and name.startswith("vision_tower")}  # fmt: skip
    assert asked == {name: shape for name, shape in held.items() if name not in unused}
