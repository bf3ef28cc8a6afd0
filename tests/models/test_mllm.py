"""Packing, suffixes, images and flags of the model. Numbers against Hugging Face: tests/parity."""

import chex
import jax
import jax.numpy as jnp
import mllm_batches as mb
import numpy as np
import pytest
from flax import nnx
from mllm_batches import run

from mmsrec_jax.models import layers
from mmsrec_jax.models.config import DecoderConfig
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime.errors import UserError

ATOL = 2e-5


def test_packed_examples_equal_separate_ones():
    rng, model = np.random.default_rng(0), mb.model()
    one, two = mb.example(rng, [(4, 6), (2, 2)], 5), mb.example(rng, [(8, 4)], 4)
    (packed,) = run(model, [mb.pack([one, two])])
    np.testing.assert_allclose(packed, np.concatenate(run(model, [one, two])), atol=ATOL)


def test_suffix_equals_prefix_and_suffix_alone():
    rng, model = np.random.default_rng(1), mb.model()
    row = mb.example(rng, [(4, 4)], 6, suffixes=(3, 5, 2))
    suffix = row["suffix_ids"]
    (together,) = run(model, [row])
    alone = [mb.select(row, (suffix == 0) | (suffix == c)) for c in (1, 2, 3)]
    for c, apart in enumerate(run(model, alone), 1):
        np.testing.assert_allclose(together[suffix == c], apart[(suffix == 0).sum() :], atol=ATOL)


def test_images_fill_their_slots_in_order():
    """Swapping two images of one grid swaps their features and changes all but the start."""
    rng, model = np.random.default_rng(2), mb.model()
    row = mb.example(rng, [(4, 4), (4, 4)], 3)
    swapped = dict(row, patches=np.roll(row["patches"], 16, axis=0))
    a, b = run(model, [row, swapped])
    np.testing.assert_allclose(a[0], b[0], atol=ATOL)
    assert np.abs(a[1:] - b[1:]).max(axis=-1).min() > 1e-3

    features = mb.features(model, [row, swapped])
    np.testing.assert_allclose(features[0, :4], features[1, 4:8], atol=ATOL)
    np.testing.assert_allclose(features[0, 4:8], features[1, :4], atol=ATOL)


def test_packed_images_have_their_own_positions_and_deepstack():
    """Two images of different grids in two segments against each alone, as Qwen3-VL sees them."""
    rng, model = np.random.default_rng(13), mb.model(**mb.QWEN3)
    one, two = mb.example(rng, [(4, 6)], 5), mb.example(rng, [(8, 4), (2, 2)], 4)
    apart = np.concatenate(run(model, [one, two]))
    (packed,) = run(model, [mb.pack([one, two])])
    np.testing.assert_allclose(packed, apart, atol=ATOL)
    for part, name in ((model.vision.positions, "table"), (model.vision.deepstack.fc2, "kernel")):
        value = getattr(part, name)[...]
        getattr(part, name)[...] = jnp.zeros_like(value)
        assert np.abs(np.concatenate(run(model, [one, two])) - apart).max() > 1e-2, name
        getattr(part, name)[...] = value


def test_positions_are_the_grid_itself_at_its_own_size():
    """And its corners at any other: an image of 2 x 2 patches takes the four."""
    grid = mb.model(**mb.QWEN3).vision.positions
    table = np.asarray(grid.table[...]).reshape(5, 5, -1)
    for side in (5, 2):
        hw = np.indices((side, side)).reshape(2, -1).T[None].astype(np.int32)
        got = grid(hw, np.ones((1, side**2), np.int32))[0].reshape(side, side, -1)
        step = 4 // (side - 1)
        np.testing.assert_allclose(got, table[::step, ::step], atol=1e-6)


def test_windows_bound_attention_except_in_full_layers():
    model = mb.model()
    row = mb.example(np.random.default_rng(3), [(4, 8)], 1)
    windows = row["patch_window_ids"]
    patches = np.where(windows[:, None] == 1, 255 - row["patches"], row["patches"])
    changed = dict(row, patches=patches.astype(np.uint8))
    elsewhere = (windows == 2).reshape(-1, 4)[:, 0]  # merge blocks of the second window
    assert elsewhere.sum() == 4

    def difference(**layout):
        a, b = mb.features(model, [row | layout, changed | layout])[:, : len(elsewhere)]
        return np.abs(a - b)[elsewhere].max()

    assert difference() > 1e-3
    assert difference(patch_image_ids=windows) == 0  # full layers now see a window as an image


def test_rope_kinds():
    row = mb.example(np.random.default_rng(4), [], 12)
    mrope, flat = mb.model(vision=False), mb.model(vision=False, rope_kind="1d")
    (a,), (b,) = run(mrope, [row]), run(flat, [row])
    np.testing.assert_allclose(a, b, atol=ATOL)  # time, row and column are equal in text
    for axis in range(3):
        moved = dict(row, positions=row["positions"].copy())
        moved["positions"][axis] *= 2
        assert np.abs(run(mrope, [moved])[0] - a).max() > 1e-3
        assert (np.abs(run(flat, [moved])[0] - b).max() > 1e-3) == (axis == 0)


def test_only_distances_matter():
    rng, model = np.random.default_rng(5), mb.model()
    row = mb.example(rng, [(4, 4)], 6)
    a, b = run(model, [row, dict(row, positions=row["positions"] + 37)])
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_qk_norm_removes_the_scale_of_queries(qk_norm):
    row = mb.example(np.random.default_rng(6), [], 9)
    model = mb.model(vision=False, qk_norm=qk_norm, qkv_bias=False)
    (before,) = run(model, [row])
    model.text.layers.q.kernel[...] = model.text.layers.q.kernel[...] * 3
    assert np.allclose(run(model, [row])[0], before, atol=1e-4) == qk_norm


def test_tied_head_is_the_embedding():
    model = mb.model(vision=False, tied=True)
    hidden = np.random.default_rng(7).normal(size=(2, 32)).astype(np.float32)
    expected = hidden @ np.asarray(model.text.embed.embedding[...]).T
    np.testing.assert_allclose(model.unembed(hidden), expected, atol=1e-5)
    assert model.text.head is None


def test_remat_changes_no_gradient():
    batch = mb.batch([mb.example(np.random.default_rng(8), [], 14)], 14)

    def gradients(remat):
        graphdef, state = nnx.split(mb.model(vision=False, remat=remat))

        def loss(state):
            return jnp.sum(nnx.merge(graphdef, state)(batch) ** 3)

        return jax.jit(jax.grad(loss))(state)

    plain = gradients("none")
    for remat in ("full", "dots"):
        chex.assert_trees_all_close(gradients(remat), plain, rtol=1e-4, atol=1e-3)


def test_what_is_kept_stands_apart_on_gpus(monkeypatch):
    """Behind a barrier where it is kept for gradients, with the same gradients; nowhere else."""
    monkeypatch.setattr(layers, "platform", lambda: "gpu")
    batch = mb.batch([mb.example(np.random.default_rng(8), [], 14)], 14)

    def loss(remat):
        graphdef, state = nnx.split(mb.model(vision=False, remat=remat))
        return (lambda state: jnp.sum(nnx.merge(graphdef, state)(batch) ** 3)), state

    found = {}
    for remat in ("full", "none", "dots"):
        function, state = loss(remat)
        assert "optimization_barrier" not in str(jax.make_jaxpr(function)(state))
        found[remat] = jax.jit(jax.grad(function))(state)
        barriers = str(jax.make_jaxpr(jax.grad(function))(state)).count("optimization_barrier")
        assert barriers == (0 if remat == "full" else 6)  # q, k, v, gate, up, and x + o
    for remat in ("none", "dots"):
        chex.assert_trees_all_close(found[remat], found["full"], rtol=1e-4, atol=1e-3)


def test_bfloat16_stays_near_float32():
    row = mb.example(np.random.default_rng(9), [(4, 4)], 6)
    (a,), (b,) = run(mb.model(), [row]), run(mb.model(dtype="bfloat16"), [row])
    assert b.dtype == jnp.bfloat16
    assert np.linalg.norm(a - b.astype(np.float32)) < 0.05 * np.linalg.norm(a)


def test_batches_of_one_shape_compile_once():
    model, rng = mb.model(seed=3), np.random.default_rng(10)
    run(model, [mb.example(rng, [(4, 4)], 4)])
    compiled = mb.forward._cache_size()
    for grids in ([(2, 2), (2, 4)], [(2, 6)]):
        run(model, [mb.example(rng, grids, 4)])
    assert mb.forward._cache_size() == compiled


def test_initialization_is_fit_for_training():
    """Logits of order one, so the first loss is near that of a uniform guess."""
    model = MLLM(mb.config(), rngs=nnx.Rngs(0))
    gate, o = model.text.layers.gate.kernel[...], model.text.layers.o.kernel[...]
    assert gate.std() == pytest.approx(32**-0.5, rel=0.1)
    assert o.std() == pytest.approx(32**-0.5 / 2, rel=0.1)  # two layers of two residual branches
    assert np.abs(gate[0] - gate[1]).min() > 0
    row = mb.example(np.random.default_rng(11), [(4, 4)], 30)
    logits = jax.nn.log_softmax(model.unembed(run(model, [row])[0]))
    loss = -logits[np.arange(len(logits) - 1), row["tokens"][1:]].mean()
    assert loss == pytest.approx(np.log(64) + 0.5, abs=0.6)


def test_images_without_a_tower_are_an_error():
    batch = mb.batch([mb.example(np.random.default_rng(12), [(2, 2)], 2)], 8, 4)
    with pytest.raises(ValueError, match="no vision tower"):
        mb.model(vision=False)(batch)


def test_configs_are_hashable_and_checked():
    assert hash(mb.config()) == hash(mb.config())
    with pytest.raises(UserError, match="mrope_section"):
        mb.config(mrope_section=(1, 1, 1))
    with pytest.raises(UserError, match="kv_heads"):
        DecoderConfig(8, 8, 1, 3, 2, 4, 8, rope_kind="1d")
    with pytest.raises(UserError, match="remat"):
        mb.config(remat="some")
