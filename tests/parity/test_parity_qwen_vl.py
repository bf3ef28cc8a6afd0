"""Live against transformers on CPU torch, for each Qwen-VL: positions, windows, logits of every
layout of images, packed rows, greedy generation and gradients of all parameters.

Run with `make parity`; skipped without torch.
"""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmsrec_jax import models
from mmsrec_jax.decoding.sampler import Sampling, generate
from mmsrec_jax.models import api, names, processor
from mmsrec_jax.models.loss import token_logprobs
from mmsrec_jax.models.mllm import MLLM

torch = pytest.importorskip(
    "torch", reason="live parity needs torch and transformers (make parity)"
)
transformers = importlib.import_module("transformers")
hf = importlib.import_module("golden.make_golden")

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
NO_IMAGE, ONE_IMAGE, TWO_IMAGES = [], [(24, 40)], [(37, 16), (24, 44)]

# head sizes, sections, activations and patches of the published models
ROPE = {"rope_type": "default", "rope_theta": 1e6}
TEXT = {
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_attention_heads": 2,
    "rope_parameters": ROPE | {"mrope_section": [16, 24, 24]},
}
PUBLISHED = {
    "qwen2_vl": {
        "text": TEXT,
        "vision": {"depth": 4, "embed_dim": 160, "mlp_ratio": 4, "patch_size": 14},
    },
    "qwen2_5_vl": {
        "text": TEXT,
        "vision": {
            "depth": 4,
            "hidden_size": 160,
            "intermediate_size": 200,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
        },
    },
    "qwen3_vl": {
        "text": TEXT
        | {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 128}
        | {"num_hidden_layers": 4, "rope_parameters": ROPE | {"mrope_section": [24, 20, 20]}},
        "vision": {
            "depth": 6,
            "hidden_size": 144,
            "intermediate_size": 200,
            "patch_size": 16,
            "num_position_embeddings": 48**2,
            "deepstack_visual_indexes": [1, 2, 4],
        },
    },
}


def make_pair(directory, seed, tied=False, **config):
    """(transformers model, ours loaded from its directory)."""
    config = hf.tiny_config(**config)
    config.tie_word_embeddings = tied
    theirs = hf.tiny_model(config, seed)
    theirs.save_pretrained(directory)
    fields = hf.preprocessor(theirs.config)
    transformers.Qwen2VLImageProcessorPil(**fields).save_pretrained(directory)
    return theirs, models.load(directory)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp(request.param), seed=1, family=request.param)


def make_rows(config, seed, layouts):
    """Random rows of text around images of the given heights and widths: (tokens, images)."""
    rng = np.random.default_rng(seed)
    theirs = transformers.Qwen2VLImageProcessorPil(**hf.preprocessor(config))
    scale = config.vision_config.patch_size / 4
    rows, images = [], []
    for number, sizes in enumerate(layouts):
        sizes = [(round(h * scale), round(w * scale)) for h, w in sizes]
        images.append(hf.random_images(seed + number, sizes))
        slots = []
        if sizes:
            grids = theirs([hf.Image.fromarray(image) for image in images[-1]])["image_grid_thw"]
            slots = (np.asarray(grids).prod(-1) // 4).tolist()
        rows.append(hf.row(rng, slots) + rng.integers(0, hf.IMAGE, 3 + 2 * number).tolist())
    return rows, images


def pad(rows, side):
    length = max(map(len, rows))
    ids = np.zeros((len(rows), length), np.int64)
    mask = np.zeros_like(ids)
    for b, tokens in enumerate(rows):
        place = slice(0, len(tokens)) if side == "right" else slice(length - len(tokens), length)
        ids[b, place], mask[b, place] = tokens, 1
    return ids, mask


def their_logits(theirs, ids, mask, images):
    with torch.no_grad():
        return hf.hf_logits(theirs, ids, mask, images).numpy()


def distance(ours, theirs, ids, mask, images):
    expected = their_logits(theirs, ids, mask, images)
    assert expected[mask.astype(bool)].std() > 0.5
    return np.abs(models.logits(ours, ids, mask, images) - expected)[mask.astype(bool)].max()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "layouts",
    [[NO_IMAGE], [ONE_IMAGE], [TWO_IMAGES], [TWO_IMAGES, NO_IMAGE, ONE_IMAGE]],
    ids=["no image", "one image", "two images", "padded batch"],
)
def test_logits(pair, layouts, side):
    theirs, ours = pair
    rows, images = make_rows(theirs.config, 2, layouts)
    ids, mask = pad(rows, side)
    error = distance(ours, theirs, ids, mask, images)
    print(f"{theirs.config.model_type}: max abs difference {error:.2e}")
    assert error <= TOLERANCE


@pytest.mark.parametrize("family", PUBLISHED)
def test_logits_at_published_proportions(family, tmp_path):
    theirs, ours = make_pair(tmp_path, seed=3, family=family, **PUBLISHED[family])
    rows, images = make_rows(theirs.config, 4, [TWO_IMAGES, NO_IMAGE, [(9, 60)]])
    ids, mask = pad(rows, "right")
    error = distance(ours, theirs, ids, mask, images)
    print(f"{family}: max abs difference {error:.2e}")
    assert error <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_head_and_one_head_per_key(family, tmp_path):
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3, "rms_norm_eps": 1e-6}
    theirs, ours = make_pair(tmp_path, seed=5, family=family, tied=True, text=heads)
    assert ours.text.head is None
    rows, images = make_rows(theirs.config, 5, [ONE_IMAGE])
    ids, mask = pad(rows, "right")
    assert distance(ours, theirs, ids, mask, images) <= TOLERANCE


def test_the_image_moves_the_logits_equally(pair):
    """Another image changes both models' logits by far more than the tolerance, and alike."""
    theirs, ours = pair
    rows, images = make_rows(theirs.config, 6, [ONE_IMAGE])
    ids, mask = pad(rows, "right")
    other = [[255 - images[0][0]]]
    moved = models.logits(ours, ids, mask, other) - models.logits(ours, ids, mask, images)
    expected = their_logits(theirs, ids, mask, other) - their_logits(theirs, ids, mask, images)
    assert np.abs(moved).max() > 1000 * TOLERANCE
    np.testing.assert_allclose(moved, expected, atol=2 * TOLERANCE)


@pytest.mark.parametrize("side", ["right", "left"])
def test_positions_equal_rope_index(pair, side):
    theirs, ours = pair
    rows, images = make_rows(theirs.config, 8, [TWO_IMAGES, [(9, 60)], NO_IMAGE])
    ids, mask = pad(rows, side)
    inputs = hf.hf_inputs(theirs, ids, mask, images)
    expected, _ = theirs.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    positions = api.make_batch(ours, ids, mask, images)["positions"].swapaxes(0, 1)
    kept = mask.astype(bool)
    np.testing.assert_array_equal(positions[:, kept], expected[:, kept].numpy())


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (6, 10), (10, 6), (16, 18), (2, 30)])
@pytest.mark.parametrize("window", [56, 84, 112])
def test_windows_equal_window_index(grid, window):
    ids = processor.window_ids(processor.patch_hw(grid, 2), grid, 14, window, 2)
    vision_utils = importlib.import_module("transformers.vision_utils")
    order, boundaries = vision_utils.get_vision_window_index(
        torch.tensor([[1, *grid]]), 2, window, 14
    )
    permuted = ids.reshape(-1, 4)[order.numpy()].reshape(-1)
    expected = np.searchsorted(boundaries.numpy(), np.arange(len(ids)), side="right")
    np.testing.assert_array_equal(permuted, expected)


def pack(batches):
    """Batches of one unpadded row each as segments 1, 2, ... of one row."""
    joined = {}
    for key in batches[0]:
        parts = [batch[key] for batch in batches]
        if key in ("segment_ids", "patch_image_ids", "patch_window_ids"):
            starts = np.cumsum([0] + [part.max() for part in parts])
            parts = [part + start for part, start in zip(parts, starts, strict=False)]
        joined[key] = np.concatenate(parts, axis=-1 if key == "positions" else 1)
    return joined


def test_packed_rows(pair):
    """Every segment of a row equals transformers' forward of it alone."""
    theirs, ours = pair
    rows, images = make_rows(theirs.config, 5, [TWO_IMAGES, ONE_IMAGE, [(16, 16)]])
    alone = [
        (np.array([tokens]), np.ones((1, len(tokens)), np.int64), [image])
        for tokens, image in zip(rows, images, strict=True)
    ]
    batch = pack([api.make_batch(ours, *arguments) for arguments in alone])
    packed = np.asarray(api._logits(*nnx.split(ours), batch))[0]
    ends = np.cumsum([len(tokens) for tokens in rows])[:-1]
    for got, arguments in zip(np.split(packed, ends), alone, strict=True):
        assert np.abs(got - models.logits(ours, *arguments)[0]).max() <= TOLERANCE
        assert np.abs(got - their_logits(theirs, *arguments)[0]).max() <= TOLERANCE


def test_greedy_generation(pair):
    """32 tokens, and their log-probabilities, after prompts of different lengths, with two images,
    one and none."""
    theirs, ours = pair
    rows, images = make_rows(theirs.config, 6, [TWO_IMAGES, NO_IMAGE, ONE_IMAGE])
    left = hf.hf_inputs(theirs, *pad(rows, "left"), images)
    with torch.no_grad():
        out = theirs.generate(
            **left,
            max_new_tokens=32,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    tokens = out.sequences[:, left["input_ids"].shape[1] :]
    logprobs = torch.stack(out.logits, 1).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    batch = api.make_batch(ours, *pad(rows, "right"), images)
    sampling = Sampling(samples=1, max_new_tokens=32, eos_ids=(-1,), pad_id=0, temperature=0.0)
    graphdef, state = nnx.split(ours)

    @jax.jit
    def run(state, batch):
        model = nnx.merge(graphdef, state)
        return generate(model, batch, jnp.arange(3), jax.random.key(0), sampling)

    got = run(state, batch)
    assert tokens.shape == (3, 32)
    np.testing.assert_array_equal(got.tokens[:, 0], tokens.numpy())
    np.testing.assert_allclose(got.logprobs[:, 0], logprobs.numpy(), atol=TOLERANCE)
    assert np.ptp(logprobs.numpy(), axis=1).min() > 1000 * TOLERANCE


def test_gradients_of_the_answer(pair):
    """d loss / d parameter of every parameter; the loss is on the last tokens of each row."""
    theirs, ours = pair
    rows, images = make_rows(theirs.config, 7, [TWO_IMAGES, NO_IMAGE, ONE_IMAGE])
    ids, mask = pad(rows, "right")
    lengths, columns = mask.sum(1, keepdims=True), np.arange(ids.shape[1])
    answer = (columns >= lengths - 3) & (columns < lengths)
    inputs = hf.hf_inputs(theirs, ids, mask, images)
    theirs.zero_grad()
    expected_loss = theirs(**inputs, labels=torch.tensor(np.where(answer, ids, -100))).loss
    expected_loss.backward()
    named = {names.canonical(name): p.grad.numpy() for name, p in theirs.named_parameters()}

    graphdef, state = nnx.split(ours)
    batch = api.make_batch(ours, ids, mask, images)

    def loss(state):
        model = nnx.merge(graphdef, state)
        logprobs = token_logprobs(model, model(batch), batch["tokens"])
        return -jnp.sum(logprobs * answer) / answer.sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(state)
    assert float(value) == pytest.approx(float(expected_loss.detach()), rel=1e-5)
    gradients = {".".join(path): v for path, v in nnx.to_flat_state(gradients)}
    leaves = list(names.leaves(ours.config))
    assert {leaf.path for leaf in leaves} == set(gradients)
    worst = 0.0
    for leaf in leaves:
        mine = np.asarray(gradients[leaf.path][...])
        reference = np.empty_like(mine)
        for i, part in enumerate(reference) if leaf.stacked else [(0, reference)]:
            part[...] = leaf.read(named[leaf.name.format(i)], part.shape)
        norm = np.linalg.norm(reference)
        assert norm > 1e-4, leaf.path
        error = np.linalg.norm(mine - reference) / norm
        worst = max(worst, error)
        assert error <= 1e-3, (leaf.path, error)
    print(f"{theirs.config.model_type}: largest relative difference {worst:.2e}")


@pytest.mark.parametrize(
    "name, count", [("qwen2_vl_2b", 729), ("qwen2_5_vl_3b", 824), ("qwen3_vl_4b", 713)]
)
def test_published_config_asks_for_the_same_tensors(name, count):
    """Names and shapes of published models, on no memory; all have tied heads."""
    raw = json.loads((Path(hf.__file__).parent / f"{name}_config.json").read_text())
    config = names.config_from_hf(raw)
    ours = nnx.eval_shape(
        lambda: MLLM(config, rngs=nnx.Rngs(0), param_dtype="bfloat16", dtype="bfloat16")
    )
    shapes = {".".join(path): v.shape for path, v in nnx.to_flat_state(nnx.state(ours))}
    leaves = list(names.leaves(config))
    assert {leaf.path for leaf in leaves} == set(shapes)
    asked = {}
    for leaf in leaves:
        layers, *shape = shapes[leaf.path] if leaf.stacked else (1, *shapes[leaf.path])
        for layer in range(layers):
            asked[leaf.name.format(layer)] = leaf.tensor_shape(tuple(shape))

    with torch.device("meta"):
        theirs = hf.AutoModelForImageTextToText.from_config(
            hf.FAMILIES[raw["model_type"]][0](**raw)
        )
    held = {names.canonical(n): tuple(p.shape) for n, p in theirs.named_parameters()}
    assert len(held) == count
    assert asked == held
