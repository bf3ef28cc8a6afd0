"""What the generated world allows to know, and how far sums over matching words are from it.

    python benchmarks/toyshop.py --seed=0 --out=toyshop.json     # two minutes on two cores

The trivial scorers read the *true* attribute words of the items, which is more than any prompt
shows: those of the last 11 items and of what 20 similar users took next (found with SASRec, trained
here; `--neighbors=0` does without). `attribute_logit` has a weight for every attribute and place,
`keyword_logit` one for every place. The Bayes rows are exact, each without one signal. Printed: all
rows under both protocols, what each signal is worth, and the margin of the better logit to both
Bayes rows, with paired 95% intervals. Fails if a margin of HR@5 of 1+20 is below `--margin`.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags

from configs import quickstart
from mmsrec_jax.data import build, sequences, splits, toyshop
from mmsrec_jax.data.records import Histories, Split
from mmsrec_jax.data.toyshop import World
from mmsrec_jax.data.toyshop_groups import learned_leads
from mmsrec_jax.data.toyshop_truth import Observer, bayes_optimal_scores, oracle_scores
from mmsrec_jax.evaluation import conditional_logit, keywords, metrics, protocols, ranking
from mmsrec_jax.evaluation.baselines import Popularity, Random
from mmsrec_jax.evaluation.comparison import bootstrap
from mmsrec_jax.evaluation.keywords import KeywordScorer
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.retrieval import similar
from mmsrec_jax.runtime.settings import from_config
from mmsrec_jax.sequential import train
from mmsrec_jax.sequential.recommender import SequentialRecommender

_SEED = flags.DEFINE_integer("seed", 0, "Of the shop, the candidates and SASRec.")
_USERS = flags.DEFINE_integer("users", 1500, "Test users; 0 is all.")
_HISTORY = flags.DEFINE_integer("history", 11, "Last items that the trivial scorers read.")
_NEIGHBORS = flags.DEFINE_integer("neighbors", 20, "Similar users' next items; 0 trains nothing.")
_MARGIN = flags.DEFINE_float("margin", 0.05, "Least margin of HR@5 from the best logit to Bayes.")
_OUT = flags.DEFINE_string("out", None, "Where to write the figures as JSON.")

_ATTRIBUTES = ("color", "pattern", "shape", "material", "occasion", "product")
_LISTS = 4000  # validation lists that the logits are fitted on
_NEGATIVES = 20
_WITHOUT = {
    "no images": Observer(images=False),
    "no texts": Observer(texts=False),
    "no groups": Observer(groups=False),
    "no clock": Observer(clock=False),
    "no time of request": Observer(now=False),
    "no order": Observer(order=False),
    "no ratings": Observer(ratings=False),
    "last three items": Observer(last=3),
}


@dataclasses.dataclass(frozen=True)
class Shop:
    """A generated shop, its split and the rows that are ranked."""

    settings: Settings
    histories: Histories
    world: World
    split: Split
    test: np.ndarray
    validation: np.ndarray

    @classmethod
    def make(cls) -> "Shop":
        config = quickstart.get_config()
        config.seed = _SEED.value
        settings = from_config(Settings, config)
        _, histories, world = toyshop.generate(settings.data.toyshop)
        split = build.split(settings.data, histories)
        return cls(
            settings, histories, world, split,
            splits.subset(split.test, _USERS.value, _SEED.value),
            splits.subset(split.validation, _LISTS, _SEED.value),
        )  # fmt: skip

    @property
    def num_items(self) -> int:
        return len(self.world.groups)


class Board:
    """Ranks of every system, under both protocols, from scores of the whole catalog."""

    def __init__(self, shop: Shop):
        self._shop = shop
        self._lists = protocols.sampled(
            shop.histories, shop.test, n=_NEGATIVES, seed=_SEED.value, num_items=shop.num_items
        )
        self.hits: dict[str, np.ndarray] = {}  # of HR@5 among the sampled candidates
        self.table: dict[str, dict[str, float]] = {}

    def add(self, name: str, scores: np.ndarray) -> None:
        among = np.take_along_axis(scores, self._lists.items, axis=1)
        sampled = ranking.from_scores(name, among, self._lists)
        full = ranking.full_from_scores(name, scores, self._shop.histories, self._shop.test)
        self.hits[name] = metrics.per_row(sampled, "hr@5")
        self.table[name] = {
            "sampled@20 hr@5": float(self.hits[name].mean()),
            "sampled@20 ndcg@5": float(metrics.per_row(sampled, "ndcg@5").mean()),
            "full hr@10": float(metrics.per_row(full, "hr@10").mean()),
            "full ndcg@10": float(metrics.per_row(full, "ndcg@10").mean()),
        }
        print(f"{name:24}" + "".join(f"{value:20.4f}" for value in self.table[name].values()))

    def difference(self, name: str, other: str) -> dict[str, float]:
        """HR@5 of `name` minus that of `other`, with its interval."""
        values = (self.hits[name] - self.hits[other])[:, None]
        low, high = bootstrap.intervals(values)
        return {"difference": float(values.mean()), "low": float(low[0]), "high": float(high[0])}


def sasrec(shop: Shop) -> SequentialRecommender:
    with tempfile.TemporaryDirectory() as directory:
        return train.train(
            shop.settings.sasrec, shop.histories, shop.split, num_items=shop.num_items,
            directory=directory,
        )  # fmt: skip


def add_word_scorers(board: Board, shop: Shop, recommender: SequentialRecommender | None) -> None:
    """The rows `keyword_overlap`, `keyword_logit` and `attribute_logit`."""
    at = np.arange(len(shop.test))

    def listed(rows: np.ndarray) -> np.ndarray:
        neighbors = None
        if recommender is not None:
            neighbors = similar.neighbors(
                recommender, shop.histories, shop.split, rows,
                k=_NEIGHBORS.value, settings=similar.RetrievalSettings(distinct_items=True),
            ).items  # fmt: skip
        return keywords.places(shop.histories, rows, history=_HISTORY.value, neighbors=neighbors)

    tested, validated = listed(shop.test), listed(shop.validation)
    width = tested.shape[1]
    words = {
        name: [{f"{name} {value}"} for value in shop.world.attributes[name]] for name in _ATTRIBUTES
    }
    every = keywords.incidence([set().union(*item) for item in zip(*words.values(), strict=True)])
    parts = [keywords.incidence(words[name]) for name in _ATTRIBUTES]

    decaying = keywords.decaying(_HISTORY.value, width - _HISTORY.value)
    board.add("keyword_overlap", KeywordScorer("", every, tested, decaying).row_scores(at))
    weights = keywords.fitted(
        every, shop.histories, shop.validation, validated, negatives=_NEGATIVES, seed=_SEED.value
    )
    board.add("keyword_logit", KeywordScorer("", every, tested, weights).row_scores(at))

    lists = protocols.sampled(
        protocols.up_to(shop.histories, shop.validation), shop.validation, n=_NEGATIVES,
        seed=_SEED.value, num_items=shop.num_items,
    )  # fmt: skip
    features = np.concatenate(
        [keywords.shared(part, lists.items, validated) for part in parts], axis=2
    )
    each = conditional_logit.fit(features, lists.positive).reshape(len(parts), width)
    scores = sum(
        KeywordScorer("", part, tested, of_part).row_scores(at)
        for part, of_part in zip(parts, each, strict=True)
    )
    board.add("attribute_logit", np.asarray(scores))


def add_truth(board: Board, shop: Shop) -> None:
    world, histories, rows = shop.world, shop.histories, shop.test
    leads = learned_leads(world, histories, shop.split.train_end)
    board.add("bayes_learned_groups", bayes_optimal_scores(world, histories, rows, leads=leads))
    board.add("bayes_optimal", bayes_optimal_scores(world, histories, rows))
    for name, observer in _WITHOUT.items():
        board.add(name, bayes_optimal_scores(world, histories, rows, observer))
    board.add("oracle", oracle_scores(world, histories, rows))


def main(argv: list[str]) -> None:
    del argv
    shop = Shop.make()
    board = Board(shop)
    past = sequences.before(shop.histories, shop.test, int(shop.test[:, 1].max()))
    names = ("sampled@20 hr@5", "sampled@20 ndcg@5", "full hr@10", "full ndcg@10")
    print(f"{'':24}" + "".join(f"{name:>20}" for name in names))
    for baseline in (
        Random(shop.num_items, _SEED.value),
        Popularity(shop.histories, shop.split, shop.num_items),
    ):
        board.add(baseline.name, np.asarray(baseline.scores(past)))
    recommender = sasrec(shop) if _NEIGHBORS.value else None
    if recommender is not None:
        board.add("sasrec", np.asarray(recommender.scores(past)))
    add_word_scorers(board, shop, recommender)
    add_truth(board, shop)
    worth = {name: board.difference("bayes_optimal", name) for name in _WITHOUT}
    best = max(("keyword_overlap", "keyword_logit", "attribute_logit"), key=_hit_rate(board))
    margins = {
        name: board.difference(name, best) for name in ("bayes_learned_groups", "bayes_optimal")
    }
    print("\nHR@5 of 1+20, bayes_optimal against an observer with")
    _print(worth)
    print(f"\nHR@5 of 1+20, against {best}")
    _print(margins)
    if _OUT.value:
        found = {
            "seed": _SEED.value, "users": len(shop.test), "neighbors": _NEIGHBORS.value,
            "table": board.table, "worth": worth, "best_logit": best, "margins": margins,
        }  # fmt: skip
        Path(_OUT.value).write_text(json.dumps(found, indent=1))
    if (least := min(margin["difference"] for margin in margins.values())) < _MARGIN.value:
        raise SystemExit(f"{best} is only {least:.4f} below Bayes")


def _hit_rate(board: Board) -> Callable[[str], float]:
    return lambda name: board.table[name]["sampled@20 hr@5"]


def _print(differences: dict[str, dict[str, float]]) -> None:
    for name, found in differences.items():
        print(
            f"{name:24}{found['difference']:+.4f}  [{found['low']:+.4f}, {found['high']:+.4f}]",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
