"""Collectives, loops and traffic of programs whose cost is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from mmsrec_jax.planning import hlo, roofline, topologies
from mmsrec_jax.runtime import sharding

TURNS, ROWS, WIDTH = 5, 16, 32


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(2, 2, 2)


@pytest.fixture(scope="module")
def program(mesh):
    """A gather, a scattered sum and a permutation in a loop of five turns, a sum after it."""

    def local(x):  # float32[ROWS, WIDTH] on every device
        def turn(x, _):
            whole = lax.all_gather(x, "fsdp", axis=0, tiled=True)
            part = lax.psum_scatter(jnp.sin(whole), "tensor", scatter_dimension=0, tiled=True)
            return lax.ppermute(part, "data", [(0, 1), (1, 0)]), None

        x, _ = lax.scan(turn, x, None, length=TURNS)
        return lax.psum(x, ("data", "tensor"))

    mapped = jax.shard_map(local, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    return hlo.Program(jax.jit(mapped).lower(x).compile().as_text())


def test_collectives_of_a_loop_and_after_it(program, mesh):
    found = {
        c.kind: (c.times, c.bytes, c.wire, roofline.axes_of(c, mesh))
        for c in program.collectives(mesh.size)
    }
    size = 4 * ROWS * WIDTH
    assert found == {
        "all-gather": (TURNS, 2 * size, size, "fsdp"),
        "reduce-scatter": (TURNS, 2 * size, size, "tensor"),
        "collective-permute": (TURNS, size, size, "data"),
        "all-reduce": (1, size, 2 * size * 3 / 4, "data+tensor"),
    }


def test_times_are_wire_bytes_over_the_links(program, mesh):
    machine = topologies.describe("cpu:8")
    traffic = roofline.traffic(program, machine, mesh)
    size = 4 * ROWS * WIDTH
    seconds = roofline.times(2e12, 3e11, traffic, machine)
    assert seconds["ici"] == pytest.approx((3 * TURNS + 1.5) * size / machine.chip.link)
    assert seconds["compute"] == 2 and seconds["memory"] == 3 and seconds["dcn"] == 0


def test_traffic_of_a_loop_over_slices():
    """A stack of matrices is read once in all, not once a turn."""
    layers, n = 7, 64

    def f(stack, x):
        return lax.scan(lambda x, w: (jnp.dot(x, w), None), x, stack)[0]

    shapes = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((layers, n, n), (n, n)))
    moved = hlo.Program(jax.jit(f).lower(*shapes).compile().as_text()).hbm_bytes()
    matrix = 4 * n * n
    least = layers * 3 * matrix  # a turn reads a weight and x, and writes x
    assert least <= moved <= 3 * least


def test_a_loop_that_may_end_early_counts_in_full(mesh):
    """Its condition compares inside of a fusion."""

    def local(x):
        def go_on(carry):
            return (carry[0] < 9) & ~jnp.all(carry[1] > 1e6)

        def turn(carry):
            return carry[0] + 1, carry[1] + jnp.sin(lax.psum(carry[1], "fsdp"))

        return lax.while_loop(go_on, turn, (jnp.int32(0), x))[1]

    mapped = jax.shard_map(local, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    found = hlo.Program(jax.jit(mapped).lower(x).compile().as_text()).collectives(8)
    assert [(c.kind, c.times) for c in found] == [("all-reduce", 9)]


TPU = """HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%all-reduce-scatter.1 (input: f32[128,1024]) -> f32[128,256] {
  %input = f32[128,1024]{1,0:T(8,128)S(1)} parameter(0)
  %ar = f32[128,1024]{1,0:T(8,128)} all-reduce(%input), channel_id=7, replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true, to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  ROOT %part = f32[128,256]{1,0:T(8,128)S(1)} dynamic-slice(%ar, %zero, %zero), dynamic_slice_sizes={128,256}
}

%body (arg: (s32[], bf16[128,1024])) -> (s32[], bf16[128,1024]) {
  %arg = (s32[]{:T(128)}, bf16[128,1024]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %value = bf16[128,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %ag = bf16[256,1024]{1,0:T(8,128)(2,1)S(1)} all-gather(%value), channel_id=1, replica_groups=mesh['a'=4,'b'=2] {'b'}, dimensions={0}, metadata={op_name="jit(f)/while/body/dot_general"}
  %sum = f32[128,1024]{1,0:T(8,128)S(1)} convert(%ag)
  %scattered = f32[128,256]{1,0:T(8,128)} fusion(%sum), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %next = (s32[]{:T(128)}, bf16[128,1024]{1,0:T(8,128)(2,1)}) tuple(%i, %value)
}

%condition (arg.1: (s32[], bf16[128,1024])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, bf16[128,1024]{1,0:T(8,128)(2,1)}) parameter(0)
  %limit = s32[]{:T(128)} constant(6)
  %never = pred[]{:T(512)} constant(false)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (p: bf16[128,1024]) -> bf16[128,1024] {
  %p = bf16[128,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %start = s32[]{:T(128)} constant(0)
  %init = (s32[]{:T(128)}, bf16[128,1024]{1,0:T(8,128)(2,1)}) tuple(%start, %p)
  %loop = (s32[]{:T(128)}, /*index=1*/bf16[128,1024]{1,0:T(8,128)(2,1)}) while(%init), condition=%condition, body=%body
  ROOT %out = bf16[128,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_what_the_tpu_compiler_writes():
    """Loops without a trip count, sums whose scattering is a fusion, on-chip memory."""
    program = hlo.Program(TPU)
    gather, scatter = program.collectives(8)
    assert (gather.kind, gather.times, gather.bytes) == ("all-gather", 6, 2 * 256 * 1024)
    assert gather.source == "jit(f)/while/body/dot_general"
    np.testing.assert_array_equal(gather.groups, np.arange(8).reshape(4, 2))
    assert (scatter.kind, scatter.times, scatter.bytes) == ("reduce-scatter", 6, 4 * 128 * 1024)
    assert scatter.wire == scatter.bytes * 3 / 4
    # A turn reads the gather's operand and writes the part of the sum; the rest stays on the chip.
    assert program.hbm_bytes() == 6 * (2 * 128 * 1024 + 4 * 128 * 256)


GPU = """
%slice (stack: f32[4,8], at: s32[]) -> f32[1,8] {
  %stack = f32[4,8]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %part = f32[1,8]{1,0} dynamic-slice(%stack, %at, %zero), dynamic_slice_sizes={1,8}
}

ENTRY %main (p: f32[4,8], i: s32[]) -> f32[1,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %begun = ((f32[4,8]{1,0}, s32[]), f32[1,8]{1,0}, u32[]) fusion-start(%p, %i), kind=kLoop, calls=%slice
  ROOT %ended = f32[1,8]{1,0} fusion-done(%begun)
}
"""  # noqa: E501


def test_a_slice_beside_other_work_of_a_gpu():
    """A row is read and a row is written, not the whole stack."""
    program = hlo.Program(GPU)
    assert program.hbm_bytes() == 2 * 4 * 8 + 4  # and the index
    (begun,) = (each for each, times, size in program.traffic() if size and times == 1)
    assert begun.opcode == "fusion-start"
    assert [each.opcode for each in program.inside(begun)][-1] == "dynamic-slice"
    assert [array.dims for array in program.operands(begun)] == [(4, 8), ()]


def test_what_slices_exchange_is_sent_by_the_host():
    line = (
        "ENTRY %main {\n  %s = (bf16[6,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%x, %t), "
        'is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="a",'
        '_xla_megascale_transfer_type="KIND"}\n}'
    )
    slices = np.arange(8).reshape(2, 4).T
    sent = 6 * 8 * 128 * 2
    for kind, wire in [("ALL_REDUCE", sent), ("ALL_GATHER", sent), ("REDUCE_SCATTER", sent / 2)]:
        program = hlo.Program(line.replace("KIND", kind))
        assert program.collectives(8) == []
        (found,) = program.collectives(8, slices)
        assert (found.kind, found.wire) == (kind.lower().replace("_", "-"), wire)
        assert found.groups.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize(
    "text, groups",
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['x'=2,'y'=4] {'x'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['x'=8] {'x':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_groups(text, groups):
    line = f"ENTRY %main {{\n  %r = f32[8]{{0}} all-reduce(%p), {text}, to_apply=%add\n}}"
    (found,) = hlo.Program(line).collectives(8)
    assert found.groups.tolist() == groups
