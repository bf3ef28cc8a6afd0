"""Which changes are tried when a step does not fit, and what is said of them."""

import dataclasses

import pytest

from configs import beauty
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.planning import remedy, steps
from mmsrec_jax.runtime.chips import GIB
from mmsrec_jax.runtime.settings import from_config

MESH = {"data": 1, "fsdp": 64, "tensor": 1}


@pytest.fixture(scope="module")
def config():
    raw = beauty.get_config()
    raw.model.remat = "dots"
    raw.sft.batch_size = 128
    return from_config(Settings, raw)


def needs(config, sizes):
    """A machine on which a step of this config needs what `sizes` of its fields take away."""
    found = 20.0
    for name, (value, saved) in sizes.items():
        section, field = name.split(".")
        found -= saved * (getattr(getattr(config, section), field) == value)
    return found


def find(config, sizes, limit, *, step="sft", tries=9):
    asked = []

    def measure(changed):
        asked.append(changed)
        peak = needs(changed, sizes)
        mesh = {axis: getattr(changed.mesh, axis) for axis in MESH}
        return mesh, {"peak": peak * GIB, "fits": peak <= limit, "compile_seconds": 1.0}

    found = {"peak": needs(config, sizes) * GIB, "largest": [[2 * GIB, "bf16[7]", "w"]]}
    tried = remedy.find(step, config, found, measure, MESH, tries=tries)
    assert len(asked) == len(tried)
    return tried, remedy.paragraph(step, found, limit * GIB, tried, quick=False)


def test_the_first_of_the_cheapest_that_fits(config):
    tried, said = find(config, {"model.remat": ("full", 3), "sft.micro_batch": (64, 8)}, 13)
    assert [(each.fields, each.fits) for each in tried] == [
        ({"model.remat": "full"}, False),
        ({"sft.micro_batch": 64}, True),
    ]
    assert "needs 20.00 GiB on a device that has 13.00 GiB" in said and "bf16[7]" in said
    assert "--config.sft.micro_batch=64, with 12.00 GiB" in said
    assert "Not enough (GiB): --config.model.remat=full (17.00)." in said


def test_changes_that_save_are_kept_until_they_are_enough(config):
    sizes = {"model.remat": ("full", 3), "mesh.tensor": (2, 6), "sft.micro_batch": (32, 2)}
    tried, said = find(config, sizes, 12, tries=30)
    mesh = {"mesh.data": 1, "mesh.fsdp": 32, "mesh.tensor": 2}
    assert tried[-1].fits and tried[-1].fields == {**mesh, "model.remat": "full"}
    assert all(each.peak > 12 * GIB for each in tried[:-1])
    assert "layers are computed twice" in tried[-1].cost and "summed" in tried[-1].cost
    assert "--config.mesh.tensor=2 --config.model.remat=full" in said


def test_no_more_programs_than_asked_for(config):
    tried, said = find(config, {}, 12, tries=3)
    assert len(tried) == 3 and "None of 3 changes fits" in said
    tried, said = find(config, {}, 12, tries=0)
    assert tried == [] and said.endswith("(w).")


@pytest.mark.parametrize("step", steps.STEPS)
def test_every_candidate_is_a_valid_config_that_the_devices_divide(config, step):
    found = list(remedy.candidates(step, config, MESH))
    assert found and len({str(each.fields) for each in found}) == len(found)
    for each in found:
        changed = remedy.changed(config, each.fields)
        assert changed != config and isinstance(changed, Settings)
        section = getattr(changed, remedy.SECTIONS[step])
        section.check("config")
        shards = changed.mesh.fsdp * changed.mesh.data
        size = getattr(section, "batch_size", shards)
        assert shards in (32, 64) and size % shards == 0
        part = getattr(section, "micro_batch", 0) or size * getattr(section, "num_generations", 1)
        assert part % shards == 0


def test_a_full_training_moves_its_moments_or_trains_adapters(config):
    full = dataclasses.replace(config, sft=dataclasses.replace(config.sft, trainable="full"))
    costs = [set(each.fields) for each in remedy.candidates("sft", full, MESH)]
    assert costs[-1] == {"sft.trainable"} and {"sft.offload_optimizer"} in costs
    assert {"sft.trainable"} not in [set(c.fields) for c in remedy.candidates("sft", config, MESH)]
