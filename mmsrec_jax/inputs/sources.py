"""Examples by index: every source is random access, picklable and a function of (seed, draw).

`source.example(row, draw)` makes one example of `row`; `draw` counts the examples of a run, so that
each epoch draws fresh negatives and noise. An example is kept within `length` tokens by this rule
(*ours*): the oldest items of the history go first, down to the latest one; then similar users'
items, least similar first; then the latest history item; then the tails of texts, halved until it
fits (room that this frees goes to the items again). What is left out is counted in
`Example.counts`.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mmsrec_jax.data.records import Catalogue, Histories
from mmsrec_jax.errors import UserError
from mmsrec_jax.inputs import example as examples
from mmsrec_jax.inputs.example import Example
from mmsrec_jax.inputs.items import Items, Prompting
from mmsrec_jax.prompts import Piece, format_summary, parse_summary, tasks
from mmsrec_jax.prompts.templates import IMAGE, LETTERS

RECOMMEND_TASKS = ("pointwise", "rank", "next_keywords", "align")
WARMUP_TASKS = ("describe", "see", "vqa", "retell", "match")
_NONE = np.zeros(0, np.int32)
_POOL = 2048  # items among which "match" looks for like ones
_LIKING = 2.5  # logit of each attribute in common
_LISTED = 3  # items of either section of "match", at most


@dataclasses.dataclass(frozen=True, eq=False)
class Knowledge:
    """What is known of items and users when a recommendation prompt is written.

    Attributes:
      keywords: comma-separated per item; None = raw text (ablation "no summaries").
      neighbours: int32[n, k], next items of similar users aligned with the rows of the source,
        most similar first, -1 where there is none; None = no retrieval (ablation).
      train_end: int32[U]; interactions `of(u)[:train_end[u]]` are never negatives. None = all.
    """

    catalogue: Catalogue
    histories: Histories
    keywords: Sequence[str] | None = None
    neighbours: np.ndarray | None = None
    train_end: np.ndarray | None = None


class _Recommend:
    """What training and scoring rows have in common: the one builder of pointwise prompts."""

    def __init__(
        self,
        knowledge: Knowledge,
        prompting: Prompting,
        rows: np.ndarray,
        *,
        length: int,
        history: int,
        similar: int,
        positive_weight: float,
    ):
        neighbours = knowledge.neighbours
        if neighbours is not None and len(neighbours) != len(rows):
            raise UserError(
                f"{len(neighbours)} rows of neighbours for {len(rows)} targets; run the retrieval "
                "stage again for this split"
            )
        self.knowledge, self.rows, self.length = knowledge, np.asarray(rows), length
        self.items = Items(knowledge.catalogue, prompting, knowledge.keywords)
        self._history, self._similar = history, similar
        self._positive_weight = positive_weight

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: int) -> Example:
        return self.example(draw % len(self), draw)

    def pointwise(self, row: int, candidates: np.ndarray, target: int) -> Example:
        """One trunk for the row's user and a branch per candidate (-1 = none)."""
        chat = self.items.prompting.chat
        for limit, last in _limits(self.items.prompting.text_tokens):
            counts = Counter()
            branches = [
                None if c < 0 else self.items.candidate(int(c), limit, counts) for c in candidates
            ]
            room = self.length - sum(len(branch) + 1 for branch in branches if branch is not None)
            trunk = self._fit(row, lambda opening: chat.encode(chat.head + opening), room, counts)
            if len(trunk) <= room or last:
                break
        return examples.branched(
            trunk,
            branches,
            [int(c == target) for c in candidates],
            verdicts=chat.verdicts,
            positive_weight=self._positive_weight,
            index=row,
            counts=counts,
        )

    def _fit(self, row: int, encode: Callable[[str], Piece], room: int, counts: Counter) -> Piece:
        """`encode(sections)` in at most `room` tokens, as far as leaving out items can do it."""
        user, position = self.rows[row]
        past = self.knowledge.histories.of(user)[:position]
        history = [self.items.words(int(i)) for i in past[max(0, len(past) - self._history) :]]
        similar = []
        if self.knowledge.neighbours is not None:
            found = self.knowledge.neighbours[row]
            similar = [self.items.words(int(i)) for i in found[found >= 0][: self._similar]]
        while True:
            piece = encode(tasks.sections(self.items.prompting.templates, history, similar))
            if len(piece) <= room or not (history or similar):
                return piece
            if len(history) > 1 or not similar:
                history.pop(0)
                counts["history_left_out"] += 1
            else:
                similar.pop()
                counts["similar_left_out"] += 1


class RecommendSource(_Recommend):
    """Stage 3's training examples (paper: pointwise; *ours*: the other tasks and their mix).

    Args:
      rows: int32[n, 2] (user, position of the target), `Split.train`.
      tasks: share of each of "pointwise", "rank", "next_keywords", "align". Without keywords there
        is nothing to align and its share falls to the others.
      negatives: per example, uniform over the items that are neither the target nor among the
        user's training interactions.
      history, similar: at most so many items in a prompt (paper: 5 and 3).
      positive_weight: weight of a yes against a no; None = `negatives`, so that classes balance.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        prompting: Prompting,
        rows: np.ndarray,
        *,
        length: int,
        seed: int,
        tasks: Mapping[str, float],
        negatives: int = 7,
        history: int = 5,
        similar: int = 3,
        positive_weight: float | None = None,
    ):
        weight = float(negatives) if positive_weight is None else positive_weight
        super().__init__(
            knowledge, prompting, rows,
            length=length, history=history, similar=similar, positive_weight=weight,
        )  # fmt: skip
        if len(rows) == 0:
            raise UserError("there are no training targets; the split left no user two items")
        if negatives + 1 > len(LETTERS) and tasks.get("rank"):
            raise UserError(f"negatives={negatives}: the rank task has {len(LETTERS)} letters")
        if knowledge.keywords is None:
            tasks = {task: share for task, share in tasks.items() if task != "align"}
        self._tasks, self._shares = _shares(tasks, RECOMMEND_TASKS, "tasks")
        self._seed, self._negatives = seed, negatives

    def example(self, row: int, draw: int) -> Example:
        rng = np.random.default_rng((self._seed, draw))
        task = self._tasks[rng.choice(len(self._tasks), p=self._shares)]
        user, position = (int(v) for v in self.rows[row])
        target = int(self.knowledge.histories.of(user)[position])
        if task == "pointwise":
            return self.pointwise(row, self._candidates(rng, user, target), target)
        if task == "rank":
            return self._rank(row, self._candidates(rng, user, target), target)
        if task == "next_keywords":
            return self._next_keywords(row, target)
        return self._align(row, target, to_keywords=bool(rng.integers(2)))

    def _candidates(self, rng: np.random.Generator, user: int, target: int) -> np.ndarray:
        """int32[1 + negatives], the target at a random place."""
        seen = self.knowledge.histories.of(user)
        if self.knowledge.train_end is not None:
            seen = seen[: self.knowledge.train_end[user]]
        total, known = len(self.items), {target, *seen.tolist()}
        if total - len(known) < self._negatives:
            raise UserError(
                f"user {self.knowledge.histories.users[user]}: {total - len(known)} items of the "
                f"catalogue are left for {self._negatives} negatives; lower negatives"
            )
        chosen: list[int] = []
        if total > 4 * (len(known) + self._negatives):
            while len(chosen) < self._negatives:
                item = int(rng.integers(total))
                if item not in known:
                    known.add(item)
                    chosen.append(item)
        else:
            rest = np.setdiff1d(np.arange(total), np.fromiter(known, np.int64))
            chosen = rng.choice(rest, self._negatives, replace=False).tolist()
        return rng.permutation(np.array([target, *chosen], np.int32))

    def _rank(self, row: int, candidates: np.ndarray, target: int) -> Example:
        letter = LETTERS[int(np.flatnonzero(candidates == target)[0])]

        def ask(limit, counts):
            options = [self.items.text(int(c), limit, counts) for c in candidates]
            return tasks.rank(self._templates, options), ()

        return self._answered(row, ask, letter, sections=True)

    def _next_keywords(self, row: int, target: int) -> Example:
        return self._answered(
            row,
            lambda limit, counts: (tasks.next_keywords(self._templates), ()),
            tasks.answer(self._templates, self.items.words(target)),
            sections=True,
        )

    def _align(self, row: int, target: int, to_keywords: bool) -> Example:
        """Item to keywords or back."""

        def ask(limit, counts):
            if not to_keywords:
                return tasks.align_words(self._templates, self.items.words(target)), ()
            image = self.items.image(target, counts)
            text = self.items.text(target, limit, counts)
            question = tasks.align_item(self._templates, text, image is not None)
            return question, () if image is None else (image,)

        full = self.items.prompting.text_tokens
        answer = (
            self.items.words(target) if to_keywords else self.items.text(target, full, Counter())
        )
        answer = tasks.answer(self._templates, answer)
        return self._answered(row, ask, answer, sections=False)

    def _answered(self, row: int, ask, answer: str, *, sections: bool) -> Example:
        """`ask(limit, counts) -> (question, images)`, after the sections if wanted."""
        chat = self.items.prompting.chat
        answer_ids = np.append(chat.ids(answer), chat.stop_id)
        room = self.length - len(answer_ids)
        for limit, last in _limits(self.items.prompting.text_tokens):
            counts = Counter()
            question, images = ask(limit, counts)

            def encode(opening, question=question, images=images):
                return chat.encode(chat.head + opening + question + chat.middle, images)

            prompt = self._fit(row, encode, room, counts) if sections else encode("")
            if len(prompt) <= room or last:
                break
        return examples.sequence(prompt, answer_ids, index=row, counts=counts)

    @property
    def _templates(self):
        return self.items.prompting.templates


class CandidateSource(_Recommend):
    """Rows to score: the same builder as in training, with candidates that are given.

    rows: int32[n, 2] (user, position); a position at the end of the history has no known target
    and all labels are 0. candidates: int32[n, C], -1 = fewer than C.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        prompting: Prompting,
        rows: np.ndarray,
        candidates: np.ndarray,
        *,
        length: int,
        history: int = 5,
        similar: int = 3,
    ):
        super().__init__(
            knowledge, prompting, rows,
            length=length, history=history, similar=similar, positive_weight=1.0,
        )  # fmt: skip
        if len(candidates) != len(rows):
            raise UserError(f"{len(candidates)} rows of candidates for {len(rows)} targets")
        self._candidates = np.asarray(candidates, np.int32)

    def example(self, row: int, draw: int) -> Example:
        del draw
        user, position = self.rows[row]
        items = self.knowledge.histories.of(user)
        target = int(items[position]) if position < len(items) else -2
        return self.pointwise(row, self._candidates[row], target)


class _PerItem:
    """Sources whose rows are items."""

    def __init__(
        self,
        catalogue: Catalogue,
        prompting: Prompting,
        *,
        length: int,
        rows: np.ndarray | None,
    ):
        self.items, self.length = Items(catalogue, prompting), length
        self.rows = np.arange(len(catalogue)) if rows is None else np.asarray(rows)
        if len(self.rows) == 0:
            raise UserError("there are no items to write prompts for")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: int) -> Example:
        return self.example(draw % len(self), draw)

    def _answered(self, i: int, ask: Callable[[str, bool], str], answer: np.ndarray) -> Example:
        chat = self.items.prompting.chat
        for limit, last in _limits(self.items.prompting.text_tokens):
            counts = Counter()
            image, text = self.items.image(i, counts), self.items.text(i, limit, counts)
            prompt = chat.encode(
                chat.head + ask(text, image is not None) + chat.middle,
                () if image is None else (image,),
            )
            if len(prompt) + len(answer) <= self.length or last:
                break
        return examples.sequence(prompt, answer, index=i, counts=counts)


class SummarySource(_PerItem):
    """Stage 1's prompts without answers; `Example.index` is the item.

    rows: int[n] items, None = all. length: of the prompt.
    """

    def __init__(self, catalogue, prompting, *, length: int, rows: np.ndarray | None = None):
        super().__init__(catalogue, prompting, length=length, rows=rows)

    def example(self, row: int, draw: int) -> Example:
        del draw
        templates = self.items.prompting.templates
        return self._answered(
            int(self.rows[row]),
            lambda text, has_image: tasks.summarise(templates, text, has_image),
            _NONE,
        )


class ContentSource(_PerItem):
    """Items without a question, for what a model makes of them; `Example.index` is the item.

    The opening of the conversation, the image, the text. Tokens of the text have loss weight 1, so
    that whoever pools tells them from the opening.

    content: "text", "image" or "item", which is both. An item without any is the opening alone.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        prompting: Prompting,
        *,
        length: int,
        content: str,
        rows: np.ndarray | None = None,
    ):
        if content == "text":
            prompting = dataclasses.replace(prompting, processor=None)
        super().__init__(catalogue, prompting, length=length, rows=rows)
        self._text = content != "image"

    def example(self, row: int, draw: int) -> Example:
        del draw
        i, chat = int(self.rows[row]), self.items.prompting.chat
        for limit, last in _limits(self.items.prompting.text_tokens):
            counts = Counter()
            image = self.items.image(i, counts)
            text = self.items.text(i, limit, counts) if self._text else ""
            opening = chat.head if image is None else chat.head + IMAGE
            prompt = chat.encode(opening, () if image is None else (image,))
            own = chat.ids(text)
            if len(prompt) + len(own) <= self.length or last:
                break
        return examples.sequence(prompt, own, index=i, counts=counts)


class WarmupSource(_PerItem):
    """What a model from scratch must know before stage 1: what images and texts show (*ours*).

    "describe" answers the summarise prompt from the item's attributes, "see" does so from the image
    alone, "vqa" asks for one attribute, "retell" writes the text from a careless description.
    Stage 1's rewards ask the model, as its own reference, what "see" and "retell" teach. "match"
    lists attributes (those of the image, of the text, or both) of items that resemble this one as
    stage 3 lists what users chose, with this item and `negatives` others as candidates: that like
    goes with like is what a small model cannot learn from a few thousand choices.

    Attributes in `image_attributes` belong to the image and are asked and told only where there is
    one; the others belong to the text. An item without attributes is described by the words of its
    title and, for the image, of its category.

    noise: targets of "describe" leave out each keyword with this probability (never all), come in
    random order, and with this probability each repeat a keyword or contain a filler word; stage 1
    has something to improve. 0 = every attribute once, in order.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        prompting: Prompting,
        *,
        length: int,
        seed: int,
        tasks: Mapping[str, float],
        image_attributes: Sequence[str] = (),
        noise: float = 0.0,
        negatives: int = 7,
        rows: np.ndarray | None = None,
    ):
        super().__init__(catalogue, prompting, length=length, rows=rows)
        self._tasks, self._shares = _shares(tasks, WARMUP_TASKS, "tasks")
        self._negatives = negatives
        self._seed, self._noise = seed, noise
        self._image_attributes = frozenset(image_attributes)
        if "match" in self._tasks:
            self._names, self._codes = _attribute_codes(self.items)
            described = [", ".join(self._known(i).values()) for i in range(len(catalogue))]
            self._known_items = Items(catalogue, prompting, described)

    def example(self, row: int, draw: int) -> Example:
        rng = np.random.default_rng((self._seed, draw))
        i = int(self.rows[row])
        chat, templates = self.items.prompting.chat, self.items.prompting.templates
        known = self._known(i)
        task = self._tasks[rng.choice(len(self._tasks), p=self._shares)]
        if task == "retell":
            return self._retell(rng, i, known)
        if task == "match" and known:
            return self._match(rng, row, known)
        if task == "vqa" and known:
            name = sorted(known)[rng.integers(len(known))]
            answer = tasks.answer(templates, known[name])

            def ask(text, has_image):
                return tasks.vqa(templates, name, text, has_image)
        else:
            alone = task == "see" and self.items.image(i, Counter()) is not None
            if alone:
                known = {k: v for k, v in known.items() if k in self._image_attributes}
            answer = self._description(rng, i, known, image_alone=alone)

            def ask(text, has_image):
                return tasks.summarise(templates, "" if alone else text, has_image)

        return self._answered(i, ask, np.append(chat.ids(answer), chat.stop_id))

    def _retell(self, rng: np.random.Generator, i: int, known: dict[str, str]) -> Example:
        chat, templates = self.items.prompting.chat, self.items.prompting.templates
        summary = parse_summary(self._description(rng, i, known))
        words = tasks.item_words(templates, ", ".join(summary.image + summary.text))
        if rng.random() < self._noise:
            words = ""
        text = self.items.text(i, self.items.prompting.text_tokens, Counter())
        answer = np.append(chat.ids(tasks.answer(templates, text)), chat.stop_id)
        question = tasks.align_words(templates, words)
        prompt = chat.encode(chat.head + question + chat.middle)
        return examples.sequence(prompt, answer, index=i, counts=Counter())

    def _match(self, rng: np.random.Generator, row: int, known: dict[str, str]) -> Example:
        prompting = self.items.prompting
        chat, templates = prompting.chat, prompting.templates
        shown = [name for name in known if name in self._image_attributes]
        told = [name for name in known if name not in self._image_attributes]
        kinds = [names for names in (shown, told, [*known]) if names]
        names, counts = kinds[rng.integers(len(kinds))], Counter()

        def words(i: int) -> str:
            attributes = self.items.attributes(i)
            values = [attributes.get(name, "") for name in rng.permutation(names).tolist()]
            return tasks.item_words(templates, ", ".join(values))

        own = int(self.rows[row])
        others = self.rows[rng.choice(len(self.rows), min(_POOL, len(self.rows)), replace=False)]
        others = others[others != own]
        columns = [self._names.index(name) for name in names]
        likeness = np.sum(self._codes[others][:, columns] == self._codes[own, columns], axis=1)
        alike = np.argsort(-_LIKING * likeness - rng.gumbel(size=len(others)))
        count, cut = rng.integers(1, 1 + np.array([2 * _LISTED, _LISTED]))
        listed = [item for item in map(words, others[alike[:count]].tolist()) if item]
        rest = others[np.setdiff1d(np.flatnonzero(likeness < len(names)), alike[:count])]
        rest = rng.permutation(rest)[: self._negatives].tolist()
        candidates = rng.permutation([own, *rest]).tolist()
        return examples.branched(
            chat.encode(chat.head + tasks.sections(templates, listed[:cut], listed[cut:])),
            [self._known_items.candidate(i, prompting.text_tokens, counts) for i in candidates],
            [int(i == own) for i in candidates],
            verdicts=chat.verdicts,
            positive_weight=1.0,  # the listwise term balances; the answers of other tasks count too
            index=own,
            counts=counts,
        )

    def _known(self, i: int) -> dict[str, str]:
        """Attributes that the prompt gives a chance to know."""
        visible = self.items.image(i, Counter()) is not None
        return {
            name: value
            for name, value in self.items.attributes(i).items()
            if visible or name not in self._image_attributes
        }

    def _description(
        self, rng: np.random.Generator, i: int, known: dict[str, str], *, image_alone: bool = False
    ) -> str:
        if known or image_alone:
            words = [(name in self._image_attributes, value) for name, value in known.items()]
        else:
            words = self._title_words(i)
        if self._noise and words:
            words = [words[k] for k in rng.permutation(len(words))]
            kept = [word for word in words if rng.random() >= self._noise] or words[:1]
            if rng.random() < self._noise:
                kept.append(kept[rng.integers(len(kept))])
            if rng.random() < self._noise:
                fillers = self.items.prompting.templates.fillers
                filler = fillers[rng.integers(len(fillers))]
                in_image, _ = kept[rng.integers(len(kept))]
                kept.insert(int(rng.integers(len(kept) + 1)), (in_image, filler))
            words = kept
        return format_summary(
            [word for in_image, word in words if in_image],
            [word for in_image, word in words if not in_image],
        )

    def _title_words(self, i: int) -> list[tuple[bool, str]]:
        clean, item = self.items.prompting.chat.clean, self.items.catalogue[i]
        title = clean(item.text.get("title", "").replace(",", " ")).lower().split()
        words = [(False, word) for word in dict.fromkeys(title)]
        if item.category and self.items.image(i, Counter()) is not None:
            words.insert(0, (True, clean(item.category.replace(",", " "))))
        return words


def _attribute_codes(items: Items) -> tuple[list[str], np.ndarray]:
    """Attribute names, int32[items, names] equal where values are; -1 - item for no value."""
    found = [items.attributes(i) for i in range(len(items))]
    names = sorted({name for attributes in found for name in attributes})
    codes = np.empty((len(found), len(names)), np.int32)
    for column, name in enumerate(names):
        known: dict[str, int] = {}
        for i, attributes in enumerate(found):
            value = attributes.get(name)
            codes[i, column] = -1 - i if value is None else known.setdefault(value, len(known))
    return names, codes


def _limits(text_tokens: int) -> list[tuple[int, bool]]:
    """Lengths of text to try, and whether each is the last."""
    tried = [text_tokens]
    while tried[-1] > 0:
        tried.append(tried[-1] // 2)
    return [(limit, limit == 0) for limit in tried]


def _shares(tasks: Mapping[str, float], allowed: Sequence[str], name: str):
    unknown = sorted(set(tasks) - set(allowed))
    if unknown:
        raise UserError(f"{name} names {unknown[0]!r}; it may name {', '.join(allowed)}")
    used = {task: float(share) for task, share in tasks.items() if share}
    if not used or min(used.values()) < 0:
        raise UserError(f"{name} must give at least one task a positive share")
    return list(used), np.array(list(used.values())) / sum(used.values())
