"""What a warm-up trained of a pretrained model, in the model that later steps begin with."""

from pathlib import Path

import export_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mmsrec_jax
from configs import base
from mmsrec_jax.methods.base_model import BaseModel
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.models import lora, trainable
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config
from mmsrec_jax.runtime.sharding import make_mesh

GOLDEN = Path(__file__).parents[1] / "golden" / "qwen3_vl"


def base_model(workdir, **changes):
    config = base.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({"model.path": str(GOLDEN), **changes})
    mesh = make_mesh(devices=jax.devices()[:1])
    return BaseModel(from_config(Settings, config), workdir, mesh)


def parameters(model, kind="full"):
    flat = nnx.to_flat_state(nnx.state(model, trainable.filter_of(kind)))
    return {".".join(map(str, path)): leaf[...] for path, leaf in flat}


@pytest.mark.parametrize("kind", trainable.KINDS)
def test_later_steps_begin_with_what_the_warm_up_left(kind, tmp_path):
    changes = {"warmup.pretrained": True, "warmup.trainable": kind, "warmup.lora_rank": 2}
    run = base_model(tmp_path, **changes, **{"sft.trainable": "connector+lora"})
    with pytest.raises(UserError, match="warmup/weights: no weights here"):
        run.load("test")
    model = run.to_train("warmup")
    export_runs.change(model, kind)
    run.save("warmup", model)
    lora.merge(model)

    expected, given = parameters(model), parameters(mmsrec_jax.load(GOLDEN, "bfloat16"))
    moved = {path for path in given if (expected[path] != given[path]).any()}
    held = parameters(run.load("test"))  # frozen: all in the type of the computation
    assert held.keys() == given.keys() and moved
    for path, value in held.items():
        assert value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(value, expected[path].astype(jnp.bfloat16), err_msg=path)
    begun = run.to_train("sft")  # its own adapters, the connector unrounded
    for path, value in parameters(begun, "connector").items():
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, expected[path], err_msg=path)
    assert parameters(begun, "lora")["text.layers.q.lora_a"].shape[-1] == 16
    assert not any(value.any() for path, value in parameters(begun, "lora").items()
                   if path.endswith("lora_b"))  # fmt: skip


def test_without_the_field_a_pretrained_model_is_as_it_is(tmp_path):
    held = parameters(base_model(tmp_path).load("test"))
    for path, value in parameters(mmsrec_jax.load(GOLDEN, "bfloat16")).items():
        np.testing.assert_array_equal(value, held[path])
