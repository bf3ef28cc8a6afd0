"""Live against torch, for every family: gradients of the answer-only loss, of every parameter and
of LoRA adapters that peft holds.

Run with `make parity`; skipped without torch.
"""

import export_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pairs import NO_IMAGE, ONE_IMAGE, TWO_IMAGES, hf, make_rows, save, torch

from mmsrec_jax.api import _logits
from mmsrec_jax.hf import exporting, mapping
from mmsrec_jax.models.token_logprobs import token_logprobs

pytestmark = pytest.mark.parity
ANSWER = 3  # tokens


def answer_batch(config):
    """input_ids, attention_mask, images, and where the tokens are that the loss is of."""
    layouts = [TWO_IMAGES, NO_IMAGE, ONE_IMAGE] if hf.has_tower(config) else [NO_IMAGE] * 3
    rows, images = make_rows(config, 7, layouts)
    ids, mask = hf.pad(rows)
    lengths, columns = mask.sum(1, keepdims=True), np.arange(ids.shape[1])
    return ids, mask, images, (columns >= lengths - ANSWER) & (columns < lengths)


def their_loss(theirs, ids, mask, images, answer) -> float:
    """Leaves the gradients in the parameters."""
    theirs.zero_grad()
    labels = torch.tensor(np.where(answer, ids, -100))
    loss = theirs(**hf.hf_inputs(theirs, ids, mask, images), labels=labels).loss
    loss.backward()
    return float(loss.detach())


def our_gradients(ours, kind, ids, mask, images, answer):
    """The loss, and its gradients by path of the parameters of `kind`."""
    graphdef, trained, frozen = nnx.split(ours, kind, ...)
    batch = _logits.make_batch(ours, ids, mask, images)

    def loss(trained, frozen):
        model = nnx.merge(graphdef, trained, frozen)
        logprobs = token_logprobs(model, model(batch), batch.tokens)
        return -jnp.sum(logprobs * answer) / answer.sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(trained, frozen)
    flat = nnx.to_flat_state(gradients)
    return float(value), {".".join(path): np.asarray(leaf[...]) for path, leaf in flat}


def worst(compared) -> float:
    """Largest relative norm of ours - theirs over tensors; keys' biases have no gradient."""
    norms = [np.linalg.norm(reference) for _, reference in compared.values()]
    scale = np.sqrt(np.mean(np.square(norms)))
    assert scale > 1e-3
    return max(
        np.linalg.norm(mine - reference) / max(np.linalg.norm(reference), 1e-3 * scale)
        for mine, reference in compared.values()
    )


@pytest.mark.parametrize("pair", [*hf.MODELS, *hf.TEXT_ONLY], indirect=True)
def test_gradients_of_every_parameter(pair):
    theirs, ours = pair
    batch = answer_batch(theirs.config)
    expected_loss = their_loss(theirs, *batch)
    expected = {mapping.canonical(name): p.grad for name, p in theirs.named_parameters()}
    loss, gradients = our_gradients(ours, nnx.Param, *batch)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    leaves = list(mapping.leaves(ours.config))
    assert {leaf.path for leaf in leaves} == set(gradients)
    compared, used = {}, set()
    for leaf in leaves:
        mine = gradients[leaf.path]
        for layer, part in enumerate(mine) if leaf.stacked else [(0, mine)]:
            tensor = leaf.name.format(layer)
            reference = leaf.read(expected[tensor].numpy(), part.shape)
            compared[leaf.path, layer] = part, reference
            used.add(tensor)
    # What has no gradient there and no place here is what the features do not depend on.
    for tensor in expected.keys() - used:
        assert expected[tensor] is None and mapping.ignored(tensor, ours.config), tensor
    error = worst(compared)
    print(f"{theirs.config.model_type}: {len(compared)} tensors, worst relative norm {error:.2e}")
    assert error <= 1e-3


@pytest.mark.parametrize(
    "pair",
    ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_clip", "internvl", *hf.TEXT_ONLY],
    indirect=True,
)
def test_gradients_of_adapters(pair, tmp_path):
    """peft's on transformers' model, with the adapters of ours."""
    peft = pytest.importorskip("peft", reason="make parity installs it")
    theirs, _ = pair
    save(theirs, tmp_path)
    ours = export_runs.trained_model(tmp_path, "lora")
    adapters, out = export_runs.adapters_of(ours), tmp_path / "adapters"
    exporting.write_adapters(out, adapters, tmp_path, dtype="float32", base_name=None)
    base = hf.auto_class(theirs.config).from_pretrained(tmp_path).eval()
    adapted = peft.PeftModel.from_pretrained(base, out, is_trainable=True)
    batch = answer_batch(theirs.config)
    expected_loss = their_loss(adapted.eval(), *batch)
    assert abs(expected_loss - their_loss(theirs, *batch)) > 0.01
    expected = {
        name.removeprefix("base_model.model.").replace(".default.", "."): p.grad.numpy()
        for name, p in adapted.named_parameters()
        if p.requires_grad
    }
    loss, gradients = our_gradients(ours, nnx.LoRAParam, *batch)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    tensors = {leaf.path.removesuffix(".kernel"): leaf.name for leaf in mapping.leaves(ours.config)}
    compared = {}
    for linear in adapters.factors:
        prefix = mapping.module(tensors[linear], ours.config).removesuffix(".weight")
        for layer in range(ours.config.text.layers):
            a, b = (gradients[f"{linear}.lora_{which}"][layer] for which in "ab")
            rank = a.shape[-1]
            for mine, which in ((a.reshape(-1, rank), "A"), (b.reshape(rank, -1), "B")):
                name = f"{prefix.format(layer)}.lora_{which}.weight"
                compared[name] = mine, expected.pop(name).T
    assert not expected
    error = worst(compared)
    print(f"{theirs.config.model_type}: {len(compared)} factors, worst relative norm {error:.2e}")
    assert error <= 1e-3
