"""The two sides of ranking.py, each served by a process of its own."""

import dataclasses
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import model_sides
import numpy as np
import processes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.accelerator.peers import weights
from benchmarks.accelerator.peers.pieces import YES_NO, Padded, Writer, joined, padded
from benchmarks.accelerator.peers.users import CANDIDATES, Sizes, Users, made
from mmsrec_jax.models.batch import Batch, pack_images
from mmsrec_jax.prompts.chat import Piece

_CLOSENESS = 0.0  # transformers has no such term


@dataclasses.dataclass(frozen=True)
class Case:
    """What both sides work on.

    sizes: of users and candidates, which end with the same `sizes.tail` tokens.
    catalog: items for which the catalog is scored: the candidates of all users, repeated.
    """

    sizes: Sizes
    catalog: int
    threads: int

    @property
    def start(self) -> int:
        """Position where prompts end and items begin in the cached form."""
        return self.sizes.prefix


def work(case: Case) -> Users:
    return made(Writer(raw_config(), seed=4), case.sizes)


def raw_config() -> weights.Config:
    return model_sides.qwen()[0].to_dict()


def write(directory: str) -> None:
    """Random weights in Hugging Face format."""
    weights.save(raw_config(), Path(directory), "float32")


class Ours:
    """Candidates as suffixes of one row (joint), and from stored keys and values (cached)."""

    def __init__(self, directory: str, case: Case):
        self._directory, self._case = directory, case

    def load(self) -> None:
        import jax
        from flax import nnx

        from benchmarks.accelerator.peers.ranking_ours import user_batch
        from mmsrec_jax.hf import loading
        from mmsrec_jax.inference import forward, scoring
        from mmsrec_jax.inference.cached_catalog import programs
        from mmsrec_jax.inference.yes_no import margins_after
        from mmsrec_jax.models.late_interaction import Encoded, Tail, read_pairs
        from mmsrec_jax.runtime import sharding

        case, users = self._case, work(self._case)
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        self._graphdef, self._state = nnx.split(loading.load(self._directory, "float32", mesh))
        self._joint = forward.compiled(self._graphdef, scoring.margins(YES_NO), mesh)
        self._rows = jax.device_put(user_batch(users))
        self._programs = programs(self._graphdef, YES_NO, _CLOSENESS, mesh)
        self._prompts = jax.device_put(prompt_rows(users, case))
        items, tails = item_rows(users, case)
        self._items, self._tails = jax.device_put((items, tails))
        self._tail = users.candidates[0].tokens[-case.sizes.tail :]

        def lists(state: Any, users: Encoded, items: Encoded, tails: Any, tail: Any) -> Any:
            """float32[B, C] of each user's own candidates, the items from b * C on."""
            model = nnx.merge(self._graphdef, state)
            count = users.there.shape[0]

            def own(user: Encoded, items: Encoded, tails: Any) -> Any:
                one = Encoded(user.k[:, None], user.v[:, None], user.there[None], user.end[None])
                hidden = read_pairs(model, one, items, Tail(tail, tails))
                return margins_after(model, hidden, YES_NO)[0]

            items = Encoded(
                *(x.reshape(len(x), count, CANDIDATES, *x.shape[2:]) for x in items[:2]),
                *(x.reshape(count, CANDIDATES, -1) for x in items[2:]),
            )
            axes = Encoded(1, 1, 0, 0)
            return jax.vmap(own, in_axes=(axes, axes, 0))(
                users, items, tails.reshape(count, CANDIDATES)
            )

        self._lists = jax.jit(lists)
        self._stored = self._programs.encode(self._state, self._items)
        self._catalog = self._repeated()
        jax.block_until_ready(self._catalog)

    def joint(self) -> np.ndarray:
        """float32[users, CANDIDATES]"""
        return np.asarray(self._joint(self._state, self._rows)[1])

    def cached(self) -> np.ndarray:
        """float32[users, CANDIDATES] from prompts and stored items."""
        users = self._programs.encode(self._state, self._prompts)
        return np.asarray(self._lists(self._state, users, self._stored, self._tails, self._tail))

    def catalog(self) -> np.ndarray:
        """float32[users, items], prompts read too."""
        users = self._programs.encode(self._state, self._prompts)
        return np.asarray(self._programs.score(self._state, users, self._catalog, self._tail))

    def encode_items(self) -> None:
        import jax

        jax.block_until_ready(self._programs.encode(self._state, self._items))

    def one_user(self) -> np.ndarray:
        """float32[1, items]: what a request of one user takes, prompt and catalog."""
        import jax

        users = self._programs.encode(self._state, jax.tree.map(lambda x: x[:1], self._prompts))
        return np.asarray(self._programs.score(self._state, users, self._catalog, self._tail))

    def flops(self) -> dict[str, float]:
        """Of a user, by form."""
        from mmsrec_jax.models import flops

        config = self._merged_config()
        sizes, users = self._case.sizes, work(self._case)
        prefix = float(np.mean([len(user.prefix) for user in users.users]))
        said = float(np.mean([len(piece) for piece in users.candidates]))
        grids = [image["grid"] for image in users.candidates[0].images]

        def read(tokens: float, seen: float, grids: Any = ()) -> float:
            return sum(flops.read(config, tokens, seen, grids).values())

        pair = read(sizes.tail, prefix + said)
        return {
            "one_forward_each": CANDIDATES * read(prefix + said, 0, grids),
            "joint": read(prefix, 0) + CANDIDATES * read(said, prefix, grids),
            "cached": read(prefix, 0) + CANDIDATES * pair,
            "catalog": read(prefix, 0) + self._case.catalog * pair,
        }

    def _merged_config(self) -> Any:
        from flax import nnx

        return nnx.merge(self._graphdef, self._state).config

    def _repeated(self) -> Any:
        """The stored items again and again, until there are as many as the catalog has."""
        import jax
        import jax.numpy as jnp

        from mmsrec_jax.inference.cached_catalog import Chunk
        from mmsrec_jax.models.late_interaction import Encoded

        at = jnp.arange(self._case.catalog) % len(self._tails)

        @jax.jit
        def repeated(stored: Encoded) -> Encoded:
            return Encoded(stored.k[:, at], stored.v[:, at], stored.there[at], stored.end[at])

        return Chunk(repeated(self._stored), self._tails[at])


class Theirs:
    """transformers: a forward a candidate, and candidates after a prefix in a cache."""

    def __init__(self, directory: str, case: Case):
        self._directory, self._case = directory, case

    def load(self) -> None:
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration

        from benchmarks.accelerator.peers.ranking_theirs import Scorer

        torch.set_num_threads(self._case.threads)
        self._model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            self._directory, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self._users = work(self._case)
        self._scorer = Scorer(self._model, self._users)

    def one_forward_each(self) -> np.ndarray:
        return self._scorer.one_forward_each().numpy().reshape(-1, CANDIDATES)

    def shared_prefix(self) -> np.ndarray:
        return self._scorer.shared_prefix().numpy().reshape(-1, CANDIDATES)

    def under_the_mask(self) -> np.ndarray:
        """float32[1, CANDIDATES] of the first user: one forward a candidate, with the mask and the
        positions of the cached form."""
        import torch

        from benchmarks.accelerator.peers import theirs

        user, tail = self._users.users[0], self._case.sizes.tail
        prefix = dataclasses.replace(user.prefix, next_position=self._case.start)
        shift = self._case.start - user.prefix.next_position
        prefix = dataclasses.replace(prefix, positions=user.prefix.positions + shift)
        rows = padded([joined(prefix, c) for c in user.candidates], self._users.processor)
        with torch.no_grad():
            hidden = self._model.model(
                input_ids=theirs.tensor(rows.tokens),
                position_ids=theirs.tensor(rows.positions),
                attention_mask=theirs.tensor(seen(rows, len(prefix), tail))[:, None],
                use_cache=False,
                **theirs.images(rows, self._model.dtype),
            ).last_hidden_state
            return self._scorer.margins(hidden, rows.lengths).numpy()[None]


def seen(rows: Padded, prefix: int, tail: int) -> np.ndarray:
    """bool[N, L, L]: prefix and item see themselves, the last `tail` tokens see both."""
    at = np.arange(rows.tokens.shape[1])
    part = np.where(at < prefix, 0, np.where(at < rows.lengths[:, None] - tail, 1, 2))
    same = (part[:, :, None] == part[:, None]) | (part[:, :, None] == 2)
    return same & np.tri(len(at), dtype=bool)


def prompt_rows(users: Users, case: Case) -> Batch:
    """A row a user, which ends at position `case.start`."""
    pieces = [user.prefix for user in users.users]
    return rows_of(pieces, case.sizes.prefix, [case.start - p.next_position for p in pieces])


def item_rows(users: Users, case: Case) -> tuple[Batch, np.ndarray]:
    """A row a candidate without its tail, and where the tails begin int32[M]."""
    tail, pieces = case.sizes.tail, []
    for piece in users.candidates:
        tokens, positions = piece.tokens[:-tail], piece.positions[:, :-tail]
        pieces.append(Piece(tokens, positions, int(positions.max()) + 1, piece.images))
    width = max(map(len, pieces))
    batch = rows_of(pieces, width, [case.start] * len(pieces))
    if case.sizes.image:
        patches = max(len(image["patches"]) for piece in pieces for image in piece.images)
        values = pieces[0].images[0]["patches"].shape[1]
        packed = pack_images([piece.images for piece in pieces], patches, values)
        batch = dataclasses.replace(batch, images=packed)
    return batch, np.array([case.start + piece.next_position for piece in pieces], np.int32)


def rows_of(pieces: list[Piece], width: int, shifts: list[int]) -> Batch:
    tokens, ids = np.zeros((2, len(pieces), width), np.int32)
    positions = np.zeros((len(pieces), 3, width), np.int32)
    for row, (piece, shift) in enumerate(zip(pieces, shifts, strict=True)):
        n = len(piece)
        tokens[row, :n], ids[row, :n] = piece.tokens, 1
        positions[row, :, :n] = piece.positions + shift
    return Batch(tokens, positions, ids)


def serve(pipe: Connection, side: str, directory: str, case: Case) -> None:
    """Answers calls until the pipe closes."""
    processes.take_cores(case.threads)
    served = {"ours": Ours, "theirs": Theirs}[side](directory, case)
    processes.answer(pipe, served, untimed=("load", "flops"))
