"""SASRec at Amazon Beauty's size: an epoch, and full ranking of all users, beside torch.

The peer is built as RecBole is: every training target is a row with its whole history, the loss is
the full softmax at the last position. Ours packs whole sequences side by side, every position is a
target. Both sides see the same targets, batches of about as many, the same sizes, and float32 with
the products that the device offers for it. Interactions are drawn at random: 22,363 users, 12,101
items, 198,502 interactions, popular items more often.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.accelerator import timing, torch_sasrec
from benchmarks.accelerator.record import Ask
from mmsrec_jax.data import sequences
from mmsrec_jax.data.records import Histories
from mmsrec_jax.data.splits import leave_one_out
from mmsrec_jax.evaluation import ranking
from mmsrec_jax.sequential import recommender
from mmsrec_jax.sequential import train as training
from mmsrec_jax.sequential.sasrec import SASRecSettings
from mmsrec_jax.training.state import TrainState

TITLE = "SASRec at Amazon Beauty's size beside torch built as RecBole is"
SECONDS = 50
USERS, ITEMS, INTERACTIONS = 22363, 12101, 198502
TINY = 150, 200, 1300
LENGTH, TARGETS = 50, 2048  # of a history, of a batch
SETTINGS = SASRecSettings(
    length=LENGTH, dim=64, layers=2, heads=2, mlp_dim=256, dropout=0.5, weight_decay=0.0,
    warmup_steps=0, batch_size=TARGETS // LENGTH,
)  # fmt: skip
SCORES_LIMIT = 1e-4  # of the largest difference, relative to the largest score, in float32
RANKS_LIMIT = 0.999  # share of users whose target has the same rank, give or take one near tie


def run(ask: Ask) -> None:
    histories = interactions(*(TINY if ask.tiny else (USERS, ITEMS, INTERACTIONS)))
    torch.backends.cuda.matmul.allow_tf32 = True  # XLA's default for float32 on a GPU too
    ours, theirs = sides = Ours(histories), Theirs(histories)
    repeats = 1 if ask.tiny else 3
    if "equal weights" not in ask.done:
        ask.report("equal weights", _compared(ours, theirs))
    if "epoch" not in ask.done:
        assert ours.targets == theirs.targets, "an epoch has the same targets on both sides"
        seconds = _in_turn([side.epoch for side in sides], repeats)
        alone = _in_turn([ours.epoch_of_ready_batches], repeats)[0]
        ask.report("epoch", _row("targets", ours.targets, *seconds) | {"ready_batches_s": alone})
    if "full ranking of all users" not in ask.done:
        seconds = _in_turn([side.rank for side in sides], repeats)
        users = len(ours.split.test)
        ask.report("full ranking of all users", _row("users", users, *seconds))


def _row(name: str, count: int, ours: float, theirs: float) -> dict[str, Any]:
    return {
        name: count, "ours_s": ours, "torch_s": theirs, "ratio": theirs / ours,
        "ours_per_s": count / ours, "torch_per_s": count / theirs,
    }  # fmt: skip


def _in_turn(works: list[Callable[[], object]], repeats: int) -> list[float]:
    """Medians in seconds, after one run each that is dropped."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 1):
        for work, found in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
    return [statistics.median(found[1:]) for found in times]


def interactions(users: int, items: int, count: int) -> Histories:
    """At least five for each user, lengths as a geometric distribution has them, items by Zipf."""
    generator = np.random.default_rng(0)
    lengths = 5 + generator.multinomial(count - 5 * users, generator.dirichlet(np.full(users, 0.6)))
    popularity = 1 / (np.arange(items) + 10) ** 0.8
    drawn = generator.choice(items, count, p=popularity / popularity.sum())
    user_of_row = np.repeat(np.arange(users), lengths)
    times = np.arange(count, dtype=np.float64)
    return Histories.from_rows(np.arange(users).astype(str), user_of_row, drawn, times)


class Ours:
    """The package's batches, compiled step and ranking."""

    def __init__(self, histories: Histories):
        self.histories, self.split = histories, leave_one_out(histories)
        items = int(histories.items.max()) + 1
        self.recipe = training.recipe(SETTINGS, items, {})
        self.features = recommender.place_features(self.recipe.model, {})
        params = recommender.init_params(self.recipe.model, seed=0)
        self.state, self.key = TrainState.create(params, self.recipe.optimizer), jax.random.key(0)
        self.targets = len(self.split.train)
        self._rows = training.PackedSequences(
            histories, self.split.train_end, LENGTH, seed=0, multiple=SETTINGS.batch_size
        )
        self._ready = list(self._batches())

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        """An epoch, as the package's pipeline makes it, but in this thread."""
        size = SETTINGS.batch_size
        for start in range(0, len(self._rows), size):
            made = [self._rows.row(row, row) for row in range(start, start + size)]
            yield {name: np.stack([row[name] for row in made]) for name in made[0]}

    def epoch(self) -> None:
        self._train(self._batches())

    def epoch_of_ready_batches(self) -> None:
        self._train(iter(self._ready))

    def _train(self, batches: Iterator[dict[str, np.ndarray]]) -> None:
        targets = 0
        for batch in batches:
            targets += int((batch["targets"] >= 0).sum())
            self.state, _ = training.step(self.recipe, self.state, self.features, batch, self.key)
        jax.block_until_ready(self.state)
        assert targets == self.targets

    def recommender(self) -> recommender.SequentialRecommender:
        return recommender.SequentialRecommender(
            self.recipe.model, self.state.params, self.features
        )

    def rank(self) -> np.ndarray:
        found = ranking.full(
            self.recommender(), self.histories, self.split.test, progress=False, top=10
        )
        return found.ranks

    def weights(self) -> dict[str, np.ndarray]:
        flat = jax.tree_util.tree_flatten_with_path(self.state.params)[0]
        return {
            ".".join(str(key.key) for key in path if hasattr(key, "key")): np.asarray(leaf)
            for path, leaf in flat
        }


class Theirs:
    """The same in torch; all rows lie on the device beforehand."""

    def __init__(self, histories: Histories):
        self.histories, self.split = histories, leave_one_out(histories)
        self.targets = len(self.split.train)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._train_ids = self._inputs(self.split.train)
        self._train_targets = self._place(sequences.targets(histories, self.split.train))
        self.test_ids = self._inputs(self.split.test)
        longest = int(histories.lengths.max())
        self._past = self._place(sequences.before(histories, self.split.test, longest))
        self._test_targets = self._place(sequences.targets(histories, self.split.test))

    def _inputs(self, rows: np.ndarray) -> torch.Tensor:
        return self._place(sequences.before(self.histories, rows, LENGTH) + 1)

    def _place(self, values: np.ndarray) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def load(self, weights: dict[str, np.ndarray]) -> None:
        model = torch_sasrec.SASRec(weights, SETTINGS.heads, SETTINGS.dropout)
        self.model = model.to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=SETTINGS.learning_rate, weight_decay=0.0, fused=True
        )

    def epoch(self) -> None:
        self.model.train()
        for rows in torch.randperm(self.targets, device=self.device).split(TARGETS):
            self.optimizer.zero_grad(set_to_none=True)
            scores = self.model.scores(self._train_ids[rows])
            torch.nn.functional.cross_entropy(scores, self._train_targets[rows]).backward()
            self.optimizer.step()
        timing.torch_wait()

    def rank(self) -> np.ndarray:
        return torch_sasrec.rank(self.model, self.test_ids, self._past, self._test_targets)


def _compared(ours: Ours, theirs: Theirs) -> dict[str, Any]:
    """Scores of some users and ranks of all with the same weights, in full float32."""
    theirs.load(ours.weights())
    theirs.model.eval()
    users = slice(0, 256)
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with jax.default_matmul_precision("highest"), torch.no_grad():
            past = sequences.before(ours.histories, ours.split.test[users], LENGTH)
            mine = np.asarray(ours.recommender().scores(past))
            other = theirs.model.scores(theirs.test_ids[users]).cpu().numpy()
            ranks_apart = np.abs(ours.rank() - theirs.rank())
    finally:
        torch.backends.cuda.matmul.allow_tf32 = True
    apart = float(np.abs(mine - other).max() / np.abs(other).max())
    near = float(np.mean(ranks_apart <= 1))
    good = apart <= SCORES_LIMIT and near >= RANKS_LIMIT
    return {
        "scores_apart": apart, "limit": SCORES_LIMIT,
        "same_ranks": float(np.mean(ranks_apart == 0)), "ranks_within_one": near,
        "result": "pass" if good else "FAIL",
    }  # fmt: skip
