"""Examples by index: every source is random access, picklable and a function of (seed, draw).

`source.example(row, draw)` makes one example of `row`; `draw` counts the examples of a run, so that
each epoch draws fresh negatives and noise. An example is kept within `length` tokens by
leaving out entries of its sections (`prompts.sections`: the oldest items of the history first, down
to the latest one; then similar users' items, least similar first; then the latest history item),
then the tails of texts (`inputs.truncation`).
"""

import abc
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mmsrec_jax.data.records import Catalog, Histories
from mmsrec_jax.inputs import example as examples
from mmsrec_jax.inputs.example import Example, Suffix
from mmsrec_jax.inputs.item_renderer import ItemRenderer, PromptConfig
from mmsrec_jax.inputs.negatives import with_negatives
from mmsrec_jax.inputs.task_mix import shares
from mmsrec_jax.inputs.truncation import limits
from mmsrec_jax.prompts import Chat, Piece, Section, Templates, choices, tasks
from mmsrec_jax.prompts import sections as prompt_sections
from mmsrec_jax.prompts.settings import PromptSettings
from mmsrec_jax.prompts.templates import IMAGE, LETTERS
from mmsrec_jax.runtime.errors import UserError

Images = Sequence[dict]
Question = tuple[str, Images]  # text with a mark for each image
RECOMMEND_TASKS = ("pointwise", "rank", "next_keywords", "align")


@dataclasses.dataclass(frozen=True, eq=False)
class PromptContext:
    """What is known of items and users when a recommendation prompt is written.

    Attributes:
      keywords: comma-separated per item; None = raw text (ablation "no summaries").
      neighbors: int32[n, k], next items of similar users aligned with the rows of the source,
        most similar first, -1 where there is none; None = no retrieval (ablation).
      train_end: int32[U]; interactions `of(u)[:train_end[u]]` are never negatives. None = all.
      retrieved: int32[n, K], items that a retriever ranks first for each row, -1 where there are
        fewer, to draw negatives from; None = there is no retriever.
      images: False = none is shown (text-only SFT).
      history_patches: vision patches of a prompt that images of the history may have; the oldest
        items show theirs last, counted as `history_images_left_out`. 0 = the history has no images.
      now: float64[n], when the rows are asked for, in seconds since 1970; None = when the target
        was chosen, and where there is none, right after the last choice.
    """

    catalog: Catalog
    histories: Histories
    keywords: Sequence[str] | None = None
    neighbors: np.ndarray | None = None
    train_end: np.ndarray | None = None
    retrieved: np.ndarray | None = None
    images: bool = True
    history_patches: int = 0
    now: np.ndarray | None = None


class UserPrompts:
    """What every prompt of a user opens with, the same in all forms, in training and scoring.

    Args:
      rows: int32[n, 2] (user, position of the target), those of `context`.
      length: tokens of an example.
      history, similar: at most so many items in a prompt (paper: 5 and 3).
    """

    def __init__(
        self,
        context: PromptContext,
        prompt_config: PromptConfig,
        rows: np.ndarray,
        *,
        length: int,
        history: int,
        similar: int,
    ):
        neighbors = context.neighbors
        if neighbors is not None and len(neighbors) != len(rows):
            raise UserError(
                f"{len(neighbors)} rows of neighbors for {len(rows)} targets; run the retrieval "
                "step again for this split"
            )
        self.context, self.rows, self.length = context, np.asarray(rows), length
        if not context.images:
            prompt_config = dataclasses.replace(prompt_config, processor=None)
        self.renderer = ItemRenderer(context.catalog, prompt_config, context.keywords)
        self._history, self._similar = history, similar

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def patch_width(self) -> int:
        """Values of a vision patch, 0 without images."""
        return self.renderer.patch_width

    def sections(self, row: int) -> list[Section]:
        """What every prompt of this row opens with, whole.

        What the user had is no next item of similar users that is worth a line (*ours*).
        """
        past = self._past(row)
        neighbors = np.zeros(0, np.int32)
        if self.context.neighbors is not None:
            found = self.context.neighbors[row]
            neighbors = found[(found >= 0) & ~np.isin(found, past)][: self._similar]
        history = [
            tasks.illustrated(words, image is not None)
            for words, image in zip(
                self._latest(row), self.history_images(row, Counter()), strict=True
            )
        ]
        return [prompt_sections.history(self._templates, history), self._similar_users(neighbors)]

    def _similar_users(self, neighbors: np.ndarray) -> Section:
        """Their next items int32[k], most similar first, one by one or counted by keyword."""
        limit = self.renderer.prompt_config.aggregate
        if not limit:
            words = [self.renderer.words(int(i)) for i in neighbors]
            return prompt_sections.similar(self._templates, words)
        counts = Counter(word for i in neighbors for word in self.renderer.keyword_list(int(i)))
        return prompt_sections.aggregated(self._templates, counts.most_common(limit))

    def history_images(self, row: int, counts: Counter) -> list[dict | None]:
        """Patches of the history's items in a prompt of this row, oldest first; None for an item
        that shows none.

        Rule (*ours*): from the latest item back, images are shown while they fit
        `PromptContext.history_patches`; from the first one on that does not, they are counted.
        """
        past = self._past(row)
        latest = past[max(0, len(past) - self._history) :]
        shown: list[dict | None] = [None] * len(latest)
        room = self.context.history_patches
        if not room:
            return shown
        for at in reversed(range(len(latest))):
            image = self.renderer.image(int(latest[at]), counts)
            if image is None:
                continue
            room = room - len(image["patches"]) if room >= 0 else room
            if room >= 0:
                shown[at] = image
            else:
                counts["history_images_left_out"] += 1
        return shown

    def _past(self, row: int) -> np.ndarray:
        user, position = self.rows[row]
        return self.context.histories.of(user)[:position]

    def _latest(self, row: int) -> list[str]:
        """Words of the user's last items, oldest first, and what is known of these choices."""
        histories, shown = self.context.histories, self.renderer.prompt_config
        user, position = (int(v) for v in self.rows[row])
        of_user = slice(histories.offsets[user], histories.offsets[user + 1])
        items, times = histories.items[of_user], histories.timestamps[of_user]
        entries = []
        for at in range(max(0, position - self._history), position):
            words = self.renderer.words(int(items[at]))
            if shown.ratings and histories.ratings is not None:
                words = choices.rated(self._templates, words, float(histories.ratings[of_user][at]))
            if shown.pauses and histories.clock:
                until = times[at + 1] if at + 1 < len(times) else times[at]
                if at + 1 == position and self.context.now is not None:
                    until = self.context.now[row]
                words = choices.followed(self._templates, words, float(until - times[at]))
            entries.append(words)
        return entries

    @property
    def _templates(self) -> Templates:
        return self.renderer.prompt_config.templates


class PointwisePrompts(UserPrompts, abc.ABC):
    """What training and scoring rows have in common: the one builder of pointwise prompts."""

    _positive_weight = 1.0  # of a yes against a no

    @abc.abstractmethod
    def example(self, row: int, draw: int) -> Example: ...

    def pointwise(self, row: int, candidates: np.ndarray, target: int) -> Example:
        """One prefix for the row's user and a suffix per candidate (-1 = none)."""
        chat, sections = self.renderer.prompt_config.chat, self.sections(row)
        for limit, last in limits(self.renderer.prompt_config.text_tokens):
            counts: Counter[str] = Counter()
            suffixes = [None if c < 0 else self.suffix(int(c), limit, counts) for c in candidates]
            room = self.length - sum(len(suffix) + 1 for suffix in suffixes if suffix is not None)
            pictures = self.history_images(row, counts)

            def encode(opening: str, pictures: Sequence[dict | None] = pictures) -> Piece:
                return chat.encode(chat.head + opening, _still_shown(opening, pictures))

            prefix = prompt_sections.fit(sections, encode, room, counts)
            if len(prefix) <= room or last:
                break
        if limit < self.renderer.prompt_config.text_tokens:
            counts["lists_with_shortened_texts"] += 1
        return examples.with_suffixes(
            prefix,
            suffixes,
            [int(c == target) for c in candidates],
            yes_no_ids=chat.yes_no_ids,
            positive_weight=self._positive_weight,
            index=row,
            counts=counts,
        )

    def suffix(self, item: int, limit: int, counts: Counter) -> Piece | Suffix:
        """What is said of a candidate before its label."""
        return self.renderer.candidate(item, limit, counts)

    def asked(
        self,
        row: int,
        ask: Callable[[int, Counter], Question],
        room: int,
        sections: Sequence[Section],
    ) -> tuple[Piece, Counter]:
        """The question after the sections in at most `room` tokens, and what was left out.

        sections: those of `row`, or none.
        ask: gets the limit of a text and what counts its cuts.
        """
        chat = self.renderer.prompt_config.chat
        for limit, last in limits(self.renderer.prompt_config.text_tokens):
            counts: Counter[str] = Counter()
            question, images = ask(limit, counts)
            pictures = self.history_images(row, counts) if sections else []

            def encode(
                opening: str,
                question: str = question,
                images: Images = images,
                pictures: Sequence[dict | None] = pictures,
            ) -> Piece:
                shown = [*_still_shown(opening, pictures), *images]
                return chat.encode(chat.head + opening + question + chat.middle, shown)

            prompt = prompt_sections.fit(sections, encode, room, counts)
            if len(prompt) <= room or last:
                break
        return prompt, counts


class RecommendSource(PointwisePrompts):
    """Stage 3's training examples (paper: pointwise; *ours*: the other tasks and their mix).

    Args:
      rows: int32[n, 2] (user, position of the target), `Split.train`.
      tasks: share of each of "pointwise", "rank", "next_keywords", "align". Without keywords there
        is nothing to align and its share falls to the others.
      negatives: per example, over the items that are neither the target nor among the user's
        training interactions.
      retriever_negatives: share of them that are drawn from `PromptContext.retrieved`, if that is
        there; the others are uniform.
      history, similar: at most so many items in a prompt (paper: 5 and 3).
      positive_weight: weight of a yes against a no; None = `negatives`, so that classes balance.
    """

    def __init__(
        self,
        context: PromptContext,
        prompt_config: PromptConfig,
        rows: np.ndarray,
        *,
        length: int,
        seed: int,
        tasks: Mapping[str, float],
        negatives: int,
        retriever_negatives: float = 0.0,
        history: int = PromptSettings.history,
        similar: int = PromptSettings.similar,
        positive_weight: float | None = None,
    ):
        super().__init__(
            context, prompt_config, rows,
            length=length, history=history, similar=similar,
        )  # fmt: skip
        if len(rows) == 0:
            raise UserError("there are no training targets; the split left no user two items")
        if negatives + 1 > len(LETTERS) and tasks.get("rank"):
            raise UserError(
                f"config.sft.negatives={negatives}: the rank task has {len(LETTERS)} letters"
            )
        if context.keywords is None:
            tasks = {task: share for task, share in tasks.items() if task != "align"}
        self._tasks, self._shares = shares(tasks, RECOMMEND_TASKS, "config.sft.tasks")
        self._seed, self._negatives = seed, negatives
        self._retriever_negatives = retriever_negatives
        self._positive_weight = float(negatives) if positive_weight is None else positive_weight

    def example(self, row: int, draw: int) -> Example:
        rng = np.random.default_rng((self._seed, draw))
        task = self._tasks[rng.choice(len(self._tasks), p=self._shares)]
        user, position = (int(v) for v in self.rows[row])
        target = int(self.context.histories.of(user)[position])
        if task == "pointwise":
            return self.pointwise(row, self._candidates(rng, row, user, target), target)
        if task == "rank":
            return self._rank(row, self._candidates(rng, row, user, target), target)
        if task == "next_keywords":
            return self._next_keywords(row, target)
        return self._align(row, target, to_keywords=bool(rng.integers(2)))

    def _candidates(self, rng: np.random.Generator, row: int, user: int, target: int) -> np.ndarray:
        retrieved = self.context.retrieved
        return with_negatives(
            rng,
            self.context.histories,
            user,
            target,
            num_items=len(self.renderer),
            negatives=self._negatives,
            train_end=self.context.train_end,
            retrieved=None if retrieved is None else retrieved[row],
            share=self._retriever_negatives,
        )

    def _rank(self, row: int, candidates: np.ndarray, target: int) -> Example:
        letter = LETTERS[int(np.flatnonzero(candidates == target)[0])]

        def ask(limit: int, counts: Counter) -> Question:
            options = [self.renderer.text(int(c), limit, counts) for c in candidates]
            return tasks.rank(self._templates, options), ()

        return self._answered(row, ask, letter, sections=self.sections(row))

    def _next_keywords(self, row: int, target: int) -> Example:
        return self._answered(
            row,
            lambda limit, counts: (tasks.next_keywords(self._templates), ()),
            tasks.answer(self._templates, self.renderer.words(target)),
            sections=self.sections(row),
        )

    def _align(self, row: int, target: int, to_keywords: bool) -> Example:
        """Item to keywords or back."""

        def ask(limit: int, counts: Counter) -> Question:
            if not to_keywords:
                return tasks.align_words(self._templates, self.renderer.words(target)), ()
            image = self.renderer.image(target, counts)
            text = self.renderer.text(target, limit, counts)
            question = tasks.align_item(self._templates, text, image is not None)
            return question, () if image is None else (image,)

        if to_keywords:
            answer = self.renderer.words(target)
        else:
            full = self.renderer.prompt_config.text_tokens
            answer = self.renderer.text(target, full, Counter())
        answer = tasks.answer(self._templates, answer)
        return self._answered(row, ask, answer, sections=[])

    def _answered(
        self,
        row: int,
        ask: Callable[[int, Counter], Question],
        answer: str,
        *,
        sections: Sequence[Section],
    ) -> Example:
        """The question after the sections, and the answer."""
        answer_ids = _answer_ids(self.renderer.prompt_config.chat, answer)
        prompt, counts = self.asked(row, ask, self.length - len(answer_ids), sections)
        return examples.sequence(prompt, answer_ids, index=row, counts=counts)


class CandidateSource(PointwisePrompts):
    """Rows to score: the same builder as in training, with candidates that are given.

    rows: int32[n, 2] (user, position); a position at the end of the history has no known target
    and all labels are 0. candidates: int32[n, C], -1 = fewer than C.
    """

    def __init__(
        self,
        context: PromptContext,
        prompt_config: PromptConfig,
        rows: np.ndarray,
        candidates: np.ndarray,
        *,
        length: int,
        history: int = PromptSettings.history,
        similar: int = PromptSettings.similar,
    ):
        super().__init__(
            context, prompt_config, rows,
            length=length, history=history, similar=similar,
        )  # fmt: skip
        if len(candidates) != len(rows):
            raise UserError(f"{len(candidates)} rows of candidates for {len(rows)} targets")
        self._candidates = np.asarray(candidates, np.int32)

    def example(self, row: int, draw: int) -> Example:
        del draw
        user, position = self.rows[row]
        items = self.context.histories.of(user)
        target = int(items[position]) if position < len(items) else -2
        return self.pointwise(row, self._candidates[row], target)


class NextKeywordsSource(PointwisePrompts):
    """Prompts of the task `next_keywords` without their answers; targets are not read.

    Args:
      rows: int32[n, 2] (user, position).
      length: of a training example, in tokens.
      answer: tokens of the longest answer, which has room behind every prompt: prompts are those of
        training, as far as neither is cut.
    """

    def __init__(
        self,
        context: PromptContext,
        prompt_config: PromptConfig,
        rows: np.ndarray,
        *,
        length: int,
        answer: int,
        history: int = PromptSettings.history,
        similar: int = PromptSettings.similar,
    ):
        prompt_config = dataclasses.replace(prompt_config, processor=None)  # no image is shown
        super().__init__(
            context, prompt_config, rows,
            length=length - answer, history=history, similar=similar,
        )  # fmt: skip
        if self.length < 1:
            raise UserError(
                f"the longest keywords of an item have {answer} tokens, a training example "
                f"{length}; raise config.sft.length"
            )

    def example(self, row: int, draw: int) -> Example:
        del draw
        question = tasks.next_keywords(self._templates), ()
        prompt, counts = self.asked(row, lambda *_: question, self.length, self.sections(row))
        return examples.sequence(prompt, np.zeros(0, np.int32), index=row, counts=counts)


def keywords_answers(context: PromptContext, prompt_config: PromptConfig) -> list[np.ndarray]:
    """Of every item int32[n], what the task `next_keywords` answers when it is next, with the token
    that ends the turn."""
    renderer = ItemRenderer(context.catalog, prompt_config, context.keywords)
    templates, chat = prompt_config.templates, prompt_config.chat
    texts = (tasks.answer(templates, renderer.words(item)) for item in range(len(renderer)))
    return [_answer_ids(chat, text) for text in texts]


def _still_shown(opening: str, pictures: Sequence[dict | None]) -> list[dict]:
    """Images of the history's items that are left in an opening: the oldest items go first."""
    images = [picture for picture in pictures if picture is not None]
    return images[len(images) - opening.count(IMAGE) :]


def _answer_ids(chat: Chat, answer: str) -> np.ndarray:
    return np.append(chat.ids(answer), np.int32(chat.stop_id))
