"""Every step of the method for a text-only model, compiled for eight devices."""

import json

import jax
import pytest

from configs import beauty
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.planning import planned, report, steps
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.settings import from_config

SHAPE = {
    "model_type": "qwen3", "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


OF_SREC = ("visual_answers", "item_texts", "writer", "preferences")


@pytest.fixture(scope="module", params=[True, False], ids=["images", "no images"])
def made(request, tmp_path_factory):
    """The config of a multimodal model, with a text-only model in its place."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(SHAPE))
    config = beauty.get_config()
    config.model.path = str(folder)
    config.use.images = request.param
    config.summarizer.update(
        batch_size=8, num_generations=2, micro_batch=16, prompt_length=32, max_new_tokens=4
    )
    config.sft.update(batch_size=8, length=64, answers=8, targets=16)
    config.evaluation.update(batch_size=8, length=64)
    config.understanding.update(batch_size=8, prompt_length=32, answer_tokens=2, summary_tokens=2)
    config.preferences.update(batch_size=8, prompt_length=32, max_new_tokens=2)
    config.writer.update(batch_size=8, length=32, answers=8, targets=16)
    config.cached.update(
        num_users=8, num_items=8, prompt_length=32, item_length=16, words_length=8, score_users=8,
        score_items=8,
    )  # fmt: skip
    settings = from_config(Settings, config)
    return steps.Steps(settings, planned.model_config(settings), sharding.make_mesh(1, 4, 2))


@pytest.mark.parametrize("name", steps.STEPS)
def test_a_step_compiles_without_patches(made, name):
    if not made.config.use.images and name in OF_SREC:
        pytest.skip("the same program as with images, which a text-only model has no room for")
    step = steps.STEPS[name](made)
    assert step.required > 0 and report.largest_arguments(step)[0][0] > 0
    assert not any(x.dtype == "uint8" for x in jax.tree.leaves(step.kinds.get("batch")))
    with jax.set_mesh(made.mesh):
        step.function.lower(*step.static, *step.arguments).compile()
