"""Which mesh has room for weights that are gathered once, against the decoder's size."""

import dataclasses

import jax
import pytest

from configs import beauty
from mmsrec_jax.hf import presets
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.planning import faster, report, steps
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.chips import GIB
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config

HELD = 2 * GIB  # what the step needs where weights stay divided


@pytest.fixture(scope="module")
def config():
    return from_config(Settings, beauty.get_config("mllm_srec"))


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, 8, 1)


@pytest.fixture(scope="module")
def step(config, mesh):
    return steps.Steps(config, presets.config("qwen2.5-vl-7b"), mesh).preferences()


def found(bound="ici", axes="fsdp"):
    gathers = {"kind": "all-gather", "axes": axes, "seconds": 8.0}
    seconds = {"ici": 9.0, "memory": 1.0}
    return {
        "step": "preferences", "bound": bound, "peak": HELD, "seconds": seconds,
        "collectives": [gathers],
    }  # fmt: skip


@pytest.mark.parametrize("room", [1, 2, 4])
def test_meshes_that_have_room_for_the_decoder(config, mesh, step, room):
    decoder = sum(
        x.size * x.dtype.itemsize
        for state in step.kinds["parameters"]
        for path, x in jax.tree_util.tree_leaves_with_path(state)
        if "'text'" in jax.tree_util.keystr(path)
    )
    assert decoder > 14 * GIB

    def meshes(limit):
        every = list(faster.gathered_once(step, config, found(), mesh, limit))
        assert all(fields.pop("preferences.gather_weights") for fields in every)
        return [(f.get("mesh.fsdp", 8), f.get("mesh.tensor", 1)) for f in every]

    # Norms are divided by nothing, and 28 heads not by eight.
    wanted = [sizes for sizes in ((8, 1), (4, 2), (2, 4)) if sizes[1] >= room]
    assert meshes(HELD + 1.01 * decoder / room) == wanted
    assert meshes(HELD + 0.99 * decoder / room) == wanted[1:]


def test_the_fastest_is_taken_and_what_follows_it_is_not_compiled():
    milliseconds, compiled = {1: None, 2: 596, 4: 345, 8: 400, 16: 100}, []

    def measure(fields):
        compiled.append(fields["mesh.tensor"])
        time = milliseconds[fields["mesh.tensor"]]
        return {"fits": time is not None, "bound": "ici", "seconds": {"ici": time}}

    changes = [{"mesh.tensor": size} for size in milliseconds]
    slow = found() | {"seconds": {"ici": 9000}}
    best = faster.find(slow, changes, measure)
    assert best is not None and best[0] == {"mesh.tensor": 4} and compiled == [1, 2, 4, 8]
    assert faster.find(found() | {"seconds": {"ici": 300}}, changes[:4], measure) is None


def test_nothing_where_the_network_is_not_what_it_waits_for(config, mesh, step):
    def changes(step, config, found):
        return list(faster.gathered_once(step, config, found, mesh, 1e12))

    assert changes(step, config, found())
    assert not changes(step, config, found("memory"))
    assert not changes(step, config, found(axes="tensor"))
    gathered = dataclasses.replace(config.preferences, gather_weights=True)
    assert not changes(step, dataclasses.replace(config, preferences=gathered), found())
    assert not changes(dataclasses.replace(step, name="sft"), config, found())


def test_slices_that_no_mesh_divides_end_the_search(config, step, monkeypatch):
    """As on two slices, over which neither data=1 nor fsdp=1 can be divided."""
    mesh, make = sharding.make_mesh(1, 8, 1), sharding.make_mesh

    def refused(**sizes):
        if sizes["fsdp"] < 4:
            raise UserError("neither data nor fsdp is a multiple of the slices")
        return make(**sizes)

    monkeypatch.setattr(sharding, "make_mesh", refused)
    found_there = list(faster.gathered_once(step, config, found(), mesh, 1e12))
    assert [fields.get("mesh.tensor", 1) for fields in found_there] == [1, 2]


@pytest.mark.parametrize("tries", [1, 6])
def test_the_report_names_it_and_compiles_no_more_than_asked(
    config, mesh, step, tries, monkeypatch, capsys
):
    compiled = []

    def measured(name, changed, machine, limit):
        compiled.append(changed.mesh.tensor)
        return {}, found() | {"fits": True, "seconds": {"ici": 4.0 / len(compiled)}}

    monkeypatch.setattr(report, "_measured", measured)
    said = found()
    report._say_faster(step, config, said, None, 1e12, mesh, quick=False, tries=tries)
    assert len(compiled) == min(tries, 3)
    assert said["faster"]["fields"]["preferences.gather_weights"] is True
    assert f"{4000 / len(compiled):.0f} ms in place of 9000" in capsys.readouterr().out


def test_what_is_said():
    fields = {"mesh.fsdp": 4, "mesh.tensor": 2, "preferences.gather_weights": True}
    changed = {"fits": True, "peak": 4 * GIB, "bound": "memory", "seconds": {"memory": 0.345}}
    said = faster.paragraph(found(), fields, changed, quick=True)
    assert "--config.mesh.tensor=2 --config.preferences.gather_weights=True" in said
    assert "4.00 GiB and 345 ms in place of 9000" in said and "--quick" in said
