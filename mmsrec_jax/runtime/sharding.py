"""The mesh and the one table from logical axes to mesh axes.

Parameters carry the logical names of their axes as metadata (`logical_axes`); activations name
theirs where they are constrained. Nothing else in the package mentions a mesh axis.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import Section, setting

T = TypeVar("T")
AnyMesh = Mesh | AbstractMesh

MESH_AXES = ("data", "fsdp", "tensor")

LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
    "replica_batch": ("data",),
    "length": (),
    "features": (),
    # parameters of the decoder; heads, kv_heads, mlp and vocab also name activation axes
    "layers": (),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "norm": (),
    "lora_rank": (),
    "lora_mlp": ("tensor", "fsdp"),  # in this order FSDP divides what `tensor` leaves to a device
    "lora_head_dim": ("fsdp",),
    # vision tower: FSDP and image-batch sharding only
    "vision_embed": ("fsdp",),
    "vision_heads": (),
    "vision_mlp": (),
    "merged": (),
    "pixels": (),
    "positions": (),
}

# With fewer kv heads than tensor devices, as grouped-query models may have, each device keeps all;
# so it does with adapters that are too small to be divided.
REPLICATED_WHEN_UNEVEN = ("kv_heads", "lora_mlp", "lora_head_dim")


@dataclasses.dataclass(frozen=True)
class MeshSettings(Section):
    """Sizes of the mesh; at most one is -1, which takes the devices that are left."""

    data: int = setting(
        1, "Replicas of the model. -1 takes the devices that are left.", low=-1, high=1_000_000
    )
    fsdp: int = setting(
        -1,
        "Shards of the weights and of the batch. -1 takes the devices that are left.",
        low=-1,
        high=1_000_000,
    )
    tensor: int = setting(
        1,
        "Shards of the heads, the MLP and the vocabulary. -1 takes the devices that are left.",
        low=-1,
        high=1_000_000,
    )

    def check(self, name: str) -> None:
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        if zero := [axis for axis, size in sizes.items() if size == 0]:
            raise UserError(
                f"{name}.{zero[0]}=0: must be at least 1, or -1 for the devices that are left"
            )
        if len(left := [axis for axis, size in sizes.items() if size == -1]) > 1:
            raise UserError(
                f"{name}.{left[0]}=-1 and {name}.{left[1]}=-1: one of them can take the devices "
                "that are left"
            )


def make_mesh(
    data: int = MeshSettings.data,
    fsdp: int = MeshSettings.fsdp,
    tensor: int = MeshSettings.tensor,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Mesh with axes data, fsdp, tensor over `devices` (default: all); a size of -1 fills up.

    Raises:
      UserError: when the sizes do not multiply to the number of devices, or slices do not divide
        them.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    named = ", ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(
            f"config.mesh: {named}: sizes are positive, and at most one is -1 (it fills up)"
        )
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"config.mesh: {named} does not divide {len(devices)} devices: choose sizes whose "
            f"product is {len(devices)}"
        )
    return Mesh(_arranged(sizes, devices), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _arranged(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices along the network: neighbors on a mesh axis are neighbors in the machine.

    Several slices, between which the network is slow, are divided along the first axis whose size
    they divide: replicas if there are any, else shards of the weights.
    """
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    across = [1] * len(sizes)
    axis = next((i for i in (0, 1) if sizes[i] % slices == 0), None)
    if axis is None:
        raise UserError(
            f"config.mesh: neither data={sizes[0]} nor fsdp={sizes[1]} is a multiple of {slices} "
            "slices"
        )
    across[axis] = slices
    inside = [size // n for size, n in zip(sizes, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        inside, across, devices, allow_split_physical_axes=True
    )


def _mesh_axes(logical: Sequence[str | None]) -> list[tuple[str, ...]]:
    axes: list[tuple[str, ...]] = []
    used: dict[str, str | None] = {}
    for name in logical:
        mapped = () if name is None else LOGICAL_AXES[name]
        for axis in mapped:
            if axis in used:
                raise ValueError(f"logical axes {used[axis]!r} and {name!r} collide on {axis!r}")
            used[axis] = name
        axes.append(mapped)
    return axes


def _even(size: int, axes: tuple[str, ...], mesh: AnyMesh) -> bool:
    return size % math.prod(mesh.shape[axis] for axis in axes) == 0


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Constrains x to the sharding of its logical axes; without a mesh (`jax.set_mesh`) a no-op.

    An axis that its mesh axes do not divide (a batch of one row, few kv heads) stays unsharded.
    """
    if len(logical) != x.ndim:
        raise ValueError(f"{logical} names {len(logical)} axes of an array of shape {x.shape}")
    axes = _mesh_axes(logical)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, _activation_spec(x.shape, axes, mesh))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def weight(x: jax.Array, held: Sequence[str], used: Sequence[str] | None = None) -> jax.Array:
    """A weight where it is used: constrained to the logical axes `used` (None leaves it as it is),
    its gradient to those it is `held` in.

    So the gradient is summed over devices straight into its shards; `constrain` would have every
    device receive the whole of it.
    """
    return x if used is None else constrain(x, *used)


def _weight_forward(
    x: jax.Array, held: Sequence[str], used: Sequence[str] | None
) -> tuple[jax.Array, None]:
    return weight(x, held, used), None


def _weight_backward(
    held: Sequence[str], used: Sequence[str] | None, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    return (constrain(gradient, *held),)


weight.defvjp(_weight_forward, _weight_backward)


def platform() -> str:
    """cpu, gpu or tpu: where what is being traced will run."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device is None:
        return jax.default_backend()
    return mesh.abstract_device.platform


def num_batch_shards(mesh: Mesh | None = None) -> int:
    """Over how many devices the rows of a batch are split; by default on the mesh in use (1 where
    there is none)."""
    used: AnyMesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return 1 if used.empty else math.prod(used.shape[axis] for axis in LOGICAL_AXES["batch"])


def is_divisible(size: int, logical: str) -> bool:
    """Whether the mesh divides an axis of this size and name (True without a mesh)."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or _even(size, LOGICAL_AXES[logical], mesh)


def per_device(f: Callable, *arguments: tuple, out: Sequence[str | None]) -> jax.Array:
    """f of what each device holds of the arguments: kernels that the partitioner cannot split, and
    loops that each device shall walk alone.

    Args:
      f: independent along every axis that the mesh divides; returns an array shaped like the first
        argument.
      arguments: pairs of a pytree and the logical names of the first axes of all its leaves.
      out: logical names of all axes of the result.
    """
    values = [value for value, _ in arguments]
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return f(*values)

    def spec(x: jax.Array, logical: Sequence[str | None]) -> PartitionSpec:
        return _activation_spec(x.shape, _mesh_axes(logical), mesh)

    in_specs = tuple(
        jax.tree.map(lambda x, logical=logical: spec(x, logical), value)
        for value, logical in arguments
    )
    # Kernels do not say along which mesh axes their results vary, hence no check of it.
    over_devices = jax.shard_map(
        f, in_specs=in_specs, out_specs=spec(values[0], out), check_vma=False
    )
    return over_devices(*values)


def _activation_spec(
    shape: Sequence[int], axes: Sequence[tuple[str, ...]], mesh: AnyMesh
) -> PartitionSpec:
    pairs = zip(shape, axes, strict=False)  # an array may have more axes than are named
    return PartitionSpec(*(a if a and _even(n, a, mesh) else None for n, a in pairs))


def _parameter_spec(
    path: str,
    shape: Sequence[int],
    logical: Sequence[str | None],
    mesh: AnyMesh,
    without: str | None,
) -> PartitionSpec:
    spec = []
    for size, name, axes in zip(shape, logical, _mesh_axes(logical), strict=True):
        if not _even(size, axes, mesh):
            if name not in REPLICATED_WHEN_UNEVEN:
                raise UserError(
                    f"{path}: axis {name!r} of size {size} is not divisible by the mesh axes "
                    f"{dict((a, mesh.shape[a]) for a in axes)}: choose another mesh"
                )
            axes = ()
        spec.append(tuple(axis for axis in axes if axis != without) or None)
    return PartitionSpec(*spec)


def shardings(state: Any, mesh: AnyMesh, *, without: str | None = None) -> Any:
    """NamedShardings in the tree structure of `state` (NNX state, or a pytree that contains some).

    Variables are sharded by their `logical_axes`, except along the mesh axis `without`; leaves
    outside of Variables are replicated.

    Raises:
      UserError: when a mesh axis does not divide a parameter's axis.
    """

    def one(path: jax.tree_util.KeyPath, node: Any) -> Any:
        if not isinstance(node, nnx.Variable):
            return replicated(mesh)
        name, logical = jax.tree_util.keystr(path), node.get_metadata()["logical_axes"]
        return jax.tree.map(
            lambda x: NamedSharding(mesh, _parameter_spec(name, x.shape, logical, mesh, without)),
            node,
        )

    return jax.tree_util.tree_map_with_path(
        one, state, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )


def gathered(state: T) -> T:
    """NNX state whose weights are no longer divided by FSDP, while tracing; without a mesh a no-op.

    For loops that use all of them in every iteration.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return state

    whole = shardings(state, mesh, without="fsdp")
    return jax.lax.with_sharding_constraint(state, whole)


def abstract(tree: Any, where: Any) -> Any:
    """What programs are compiled for without arrays: `tree`, of arrays or their shapes, as shapes
    with the shardings `where` (one, or a tree of them)."""
    if isinstance(where, NamedSharding):
        where = jax.tree.map(lambda _: where, tree)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where
    )


def process_batch_shard(mesh: Mesh) -> tuple[int, int]:
    """`(index, count)`: which part of the rows of a batch this process makes, of how many.

    Processes whose devices hold the same rows make the same part.

    Raises:
      UserError: the devices of two processes share some of their rows and not all.
    """
    shards = num_batch_shards(mesh)
    rows: dict[int, set[int]] = {}
    for device, (part,) in batch_sharding(mesh).devices_indices_map((shards,)).items():
        process = device.process_index  # type: ignore[attr-defined]  # jax types no devices here
        rows.setdefault(process, set()).add(part.start or 0)
    parts = sorted({tuple(sorted(held)) for held in rows.values()})
    if sum(map(len, parts)) != shards or len({len(part) for part in parts}) > 1:
        raise UserError(
            "the mesh splits the rows of a batch unevenly over processes: choose sizes of data x "
            "fsdp and tensor that divide, or are multiples of, the devices of a process"
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(LOGICAL_AXES["batch"]))
