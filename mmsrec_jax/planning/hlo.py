"""Reads a compiled program: its collectives, the HBM it reads and writes, its large buffers.

The text of optimized HLO is all that every compiler gives. An instruction in a loop counts once per
iteration: by `known_trip_count` where the compiler says it, else by the constant that the
loop's condition compares with (a loop that may end early counts in full). Both branches of a
conditional count.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SLICES = ("dynamic-slice", "gather", "slice")
_NO_TRAFFIC = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "opt-barrier",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Array:
    """dtype and dims of a value; hbm: not in a smaller or the host's memory."""

    dtype: str
    dims: tuple[int, ...]
    hbm: bool

    @property
    def bytes(self) -> int:
        width = _BYTES.get(self.dtype)
        if width is None:
            bits = re.search(r"\d+", self.dtype)
            width = int(bits[0]) / 8 if bits else 0
        return math.ceil(math.prod(self.dims) * width)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """attributes: what stands behind the operands; arrays: of the result, flat."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    line: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @property
    def source(self) -> str:
        """What the program calls it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else self.name

    def called(self, attribute: str) -> str:
        """The computation that an attribute names, "" without one."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """bytes: of the whole array that a group gathers, reduces or exchanges, on one device;
    wire: what each device sends in a ring; both of one call. times: calls in a step, more than one
    inside a loop. dims: of the (first) result."""

    kind: str
    bytes: int
    dims: tuple[int, ...]
    groups: np.ndarray
    times: int
    source: str

    @property
    def wire(self) -> float:
        if self.kind == "collective-permute":
            return float(self.bytes)
        n = self.groups.shape[1]
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (n - 1) / n


class Program:
    """Computations of optimized HLO by name."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            if header := _HEADER.match(line):
                current = self.computations[header[2]] = []
                self.entry = header[2] if header[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                current.append(_instruction(found[2], found[3], bool(found[1])))

    def collectives(self, devices: int, slices: np.ndarray | None = None) -> list[Collective]:
        """Every collective among `devices` that is more than one device wide.

        slices: int[groups, count], the positions of devices that are alike in all of several
          slices; what these exchange over the data center's network is a send in the text.
        """
        found: list[Collective] = []
        if slices is not None:
            found += self._between_slices(slices)
        for instruction, times, scattered in self._collective_instructions():
            kind = next(k for k in _KINDS if instruction.opcode.removesuffix("-start") == k)
            arrays = instruction.arrays
            if instruction.opcode.endswith("-start") and kind in ("all-gather", _KINDS[4]):
                arrays = arrays[len(instruction.operands) : 2 * len(instruction.operands)]
            size = sum(array.bytes for array in arrays)
            groups = _groups(instruction, devices)
            if groups.shape[1] == 1:
                continue
            if kind == "reduce-scatter":
                size *= groups.shape[1]
            kind = "reduce-scatter" if scattered else kind
            found.append(Collective(kind, size, arrays[0].dims, groups, times, instruction.source))
        return found

    def _between_slices(self, slices: np.ndarray) -> Iterator[Collective]:
        for name, times in self._running():
            for instruction in self.computations[name]:
                sent_as = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
                if instruction.opcode != "send" or not sent_as:
                    continue
                kind = sent_as[1].lower().replace("_", "-")
                kind = "collective-permute" if kind == "one-to-one" else kind
                sent = instruction.arrays[0]
                size = sent.bytes * (slices.shape[1] if kind == "all-gather" else 1)
                yield Collective(kind, size, sent.dims, slices, times, instruction.source)

    def traffic(self) -> Iterator[tuple[Instruction, int, int]]:
        """Every instruction that runs, how often in a step, and the bytes that it reads from and
        writes to HBM each time."""
        for name, times in self._running():
            values = self._values(name)
            for each in values.values():
                yield each, times, self._traffic(each, values)

    def inside(self, instruction: Instruction) -> list[Instruction]:
        """What a fusion is made of; of another instruction, itself."""
        return self.computations.get(instruction.called("calls"), [instruction])

    def operands(self, instruction: Instruction) -> list[Array]:
        """The first array of each operand."""
        by_name = next(v for v in map(self._values, self.computations) if instruction.name in v)
        return [by_name[name].arrays[0] for name in instruction.operands if name in by_name]

    def hbm_bytes(self) -> int:
        """Bytes read from and written to HBM in a step: operands and results of what runs, slices
        as what is sliced off or written, nothing for values in on-chip memory."""
        total = sum(times * size for _, times, size in self.traffic())
        for instruction, times, _ in self._collective_instructions():
            if "chain_id" in instruction.attributes:
                total += times * _hbm(instruction.arrays)
        return total

    def largest(self, count: int) -> list[tuple[int, str, str]]:
        """(bytes, shape, source) of the largest results in HBM."""
        found: dict[tuple[int, str], str] = {}
        for name, _ in self._running():
            for instruction in self.computations[name]:
                if instruction.opcode in _NO_TRAFFIC:
                    continue
                for array in instruction.arrays:
                    if array.hbm:
                        key = array.bytes, str(array)
                        found.setdefault(key, instruction.source)
        return [(*key, source) for key, source in sorted(found.items(), reverse=True)[:count]]

    # --- how often, and what -------------------------------------------------------------------

    @functools.cache  # noqa: B019  (a program lives as long as its report)
    def _running(self) -> list[tuple[str, int]]:
        """Computations that are run by themselves, and how often."""
        found: list[tuple[str, int]] = []

        def visit(name: str, times: int) -> None:
            found.append((name, times))
            for instruction in self.computations[name]:
                if instruction.opcode == "while":
                    visit(instruction.called("body"), times * self._trips(instruction))
                elif instruction.opcode == "call":
                    visit(instruction.called("to_apply"), times)
                elif instruction.opcode == "conditional":
                    for branch in _branches(instruction):
                        visit(branch, times)

        visit(self.entry, 1)
        return found

    def _trips(self, loop: Instruction) -> int:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self._with_called(loop.called("condition"))
        constants = (re.search(r"^s32\[\].* constant\((\d+)\)", each.line) for each in condition)
        limits = [int(constant[1]) for constant in constants if constant]
        return max([1, *limits])

    def _with_called(self, name: str) -> Iterator[Instruction]:
        for instruction in self.computations[name]:
            yield instruction
            called = instruction.called("calls") or instruction.called("to_apply")
            if called:
                yield from self._with_called(called)

    def _collective_instructions(self) -> Iterator[tuple[Instruction, int, bool]]:
        """With how often it is run, and whether each device keeps only its part of the sum."""
        chains: dict[str, tuple[Instruction, int, bool]] = {}
        for name, times in self._running():
            for instruction in self.computations[name]:
                if _is_collective(instruction):
                    yield instruction, times, False
                fused = instruction.called("calls")
                for inner in self.computations.get(fused, ()):
                    if not _is_collective(inner):
                        continue
                    found = inner, times, "all-reduce-scatter" in fused
                    if chain := re.search(r'chain_id="(\w+)"', inner.attributes):
                        # Every fusion that a collective overlaps with repeats it. One that is
                        # begun before a loop and goes on inside of it is still one.
                        held = chains.setdefault(chain[1], found)
                        chains[chain[1]] = min(held, found, key=lambda each: each[1])
                    else:
                        yield found
        yield from chains.values()

    @functools.cache  # noqa: B019
    def _values(self, name: str) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.computations[name]}

    def _traffic(self, instruction: Instruction, values: dict[str, Instruction]) -> int:
        opcode = instruction.opcode
        if opcode in _NO_TRAFFIC or opcode.endswith("-done") or opcode == "async-update":
            return 0
        if instruction.name.startswith("async-collective"):
            return 0  # counted with the collective
        if opcode == "slice-start":
            whole, part = instruction.arrays[:2]
            return part.bytes * (whole.hbm + part.hbm)
        operands = [values[name].arrays if name in values else () for name in instruction.operands]
        if opcode == "fusion-start":  # its results stand behind its operands
            return self._fused_traffic(instruction, operands, instruction.arrays[len(operands) :])
        if opcode.endswith("-start"):  # the result names operands and results
            return _hbm(instruction.arrays)
        if opcode in _SLICES:
            return 2 * _hbm(instruction.arrays)
        if opcode == "dynamic-update-slice":
            return 2 * _hbm(operands[1])
        if opcode == "fusion":
            return self._fused_traffic(instruction, operands, instruction.arrays)
        return _hbm(instruction.arrays) + sum(map(_hbm, operands))

    def _fused_traffic(
        self,
        fusion: Instruction,
        operands: list[tuple[Array, ...]],
        results: tuple[Array, ...],
    ) -> int:
        fused = fusion.called("calls")
        read = sum(self._read(fused, i, _hbm(arrays)) for i, arrays in enumerate(operands))
        written = (
            self._written(fused, element, array)
            for element, array in zip(self._results(fused), results, strict=False)
            if array.hbm
        )
        return read + sum(written)

    def _read(self, fused: str, index: int, whole: int) -> int:
        """Bytes that a fused computation reads of its parameter, which has `whole`."""
        inside, total = self._values(fused), 0
        parameter = next(i for i in inside.values() if i.line.count(f" parameter({index})"))
        for user, place in _users(inside, parameter.name):
            if user.opcode in _SLICES and place == 0:
                total += user.bytes
            elif user.opcode == "fusion":
                total += self._read(user.called("calls"), place, whole)
            elif user.opcode == "dynamic-update-slice" and place == 0:
                continue  # in place
            elif user.opcode != "tuple" and not _is_collective(user):
                return whole
        return min(total, whole)

    def _written(self, fused: str, element: Instruction, array: Array) -> int:
        """Bytes that a fused computation writes of one of its results."""
        if element.opcode == "fusion":
            inner = element.called("calls")
            return self._written(inner, self._results(inner)[0], array)
        if element.opcode == "dynamic-update-slice":
            return self._values(fused)[element.operands[1]].bytes
        passed_on = element.opcode == "parameter" or _is_collective(element)
        return 0 if passed_on else array.bytes

    def _results(self, computation: str) -> list[Instruction]:
        """What a computation returns, one by one, behind bitcasts."""
        inside = self._values(computation)
        root = next(i for i in inside.values() if i.root)
        found = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
        for place, element in enumerate(found):
            while element.opcode == "bitcast":
                element = inside[element.operands[0]]
            found[place] = element
        return found


def _users(inside: dict[str, Instruction], name: str) -> list[tuple[Instruction, int]]:
    """Instructions that read `name`, seen through bitcasts, and at which operand."""
    found = []
    for instruction in inside.values():
        if name in instruction.operands:
            if instruction.opcode == "bitcast":
                found += _users(inside, instruction.name)
            else:
                found.append((instruction, instruction.operands.index(name)))
    return found


def _instruction(name: str, text: str, root: bool) -> Instruction:
    shape, rest = _head(text)
    opcode, _, rest = rest.strip().partition("(")
    operands, attributes = _head("(" + rest)
    return Instruction(
        name,
        opcode.strip(),
        tuple(_arrays(shape)),
        tuple(re.findall(r"%([\w.\-]+)", operands)),
        attributes,
        text,
        root,
    )


def _head(text: str) -> tuple[str, str]:
    """The first word, or what stands in parentheses, and the rest."""
    if not text.startswith("("):
        word, _, rest = text.partition(" ")
        return word, rest
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    return text, ""


def _arrays(shape: str) -> Iterator[Array]:
    for dtype, dims, layout in _ARRAY.findall(shape):
        sizes = tuple(int(n.lstrip("<=")) for n in dims.split(",") if n)
        yield Array(dtype, sizes, not re.search(r"S\([1-9]\d*\)", layout))


def _hbm(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if array.hbm)


def _branches(conditional: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", conditional.attributes)
    if listed:
        return re.findall(r"%?([\w.\-]+)", listed[1])
    both = (conditional.called(f"{name}_computation") for name in ("true", "false"))
    return [name for name in both if name]


def _is_collective(instruction: Instruction) -> bool:
    return instruction.opcode.removesuffix("-start") in _KINDS


def _groups(instruction: Instruction, devices: int) -> np.ndarray:
    """int[groups, size]: positions in the mesh's flat order that communicate with each other."""
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", text):
        return np.array([pair for pair in _lists(pairs[1]) if pair[0] != pair[1]] or [[0]])
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", text):
        return np.array(_lists(listed[1]))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, sizes = (tuple(map(int, iota[i].split(","))) for i in (1, 2))
        order = map(int, iota[3].split(",")) if iota[3] else range(len(sizes))
        return np.arange(math.prod(sizes)).reshape(sizes).transpose(*order).reshape(shape)
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        return _mesh_groups(mesh[1], mesh[2])
    return np.arange(devices)[None]


def _mesh_groups(axes: str, over: str) -> np.ndarray:
    """Groups written as axes of a mesh in row-major order, whole or a factor `'a':(before)size`."""
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", axes)}
    factors = {
        name: (int(before), int(size)) if size else (1, sizes[name])
        for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", over)
    }
    shape, grouped = [], []
    for name, whole in sizes.items():
        before, size = factors.get(name, (whole, 1))
        shape += [before, size, whole // before // size]
        grouped.append(len(shape) - 2)
    order = [i for i in range(len(shape)) if i not in grouped] + grouped
    width = math.prod(shape[i] for i in grouped)
    return np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(-1, width)


def _lists(text: str) -> list[list[int]]:
    return [list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", text)]
