"""Prompts of users and of items apart, for the cached form (`models.late_interaction`, *ours*)."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from mmsrec_jax.data import sequences
from mmsrec_jax.inputs.batch import Room
from mmsrec_jax.inputs.item_renderer import PromptConfig
from mmsrec_jax.inputs.pipeline import ahead
from mmsrec_jax.inputs.recommend import PromptContext, UserPrompts
from mmsrec_jax.inputs.truncation import limits
from mmsrec_jax.models.batch import Batch, pack_images
from mmsrec_jax.models.pair_batch import PairBatch
from mmsrec_jax.prompts import Piece, Section, tasks
from mmsrec_jax.prompts import sections as prompt_sections
from mmsrec_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class PairRoom:
    """Static sizes.

    Attributes:
      prompt: tokens of a user's prompt; positions of items begin there.
      item: tokens of an item, without its tail.
      patches: vision patches of an item; 0 = no images.
      tail: tokens of a tail.
      words: tokens of the question for the next item's keywords, and of the answer.
    """

    prompt: int
    item: int
    patches: int
    tail: int
    words: int


class Prompt(NamedTuple):
    """What is known of a user, and the tokens where the user is read."""

    piece: Piece
    ends: tuple[int, ...]


class Known(NamedTuple):
    """A prompt, and what of the history in it can be predicted from what stands before.

    Attributes:
      targets: int[n], the tokens of items of the history after the first.
      ends: int[k], the last tokens of its items but the last.
      nexts: int32[k], the item after each of these.
    """

    prompt: Prompt
    targets: np.ndarray
    ends: np.ndarray
    nexts: np.ndarray


class PairPrompts(UserPrompts):
    """Rows of users and of items of one run; arguments as of `UserPrompts`, and:

    Args:
      history_end: a user is the mean of where the history ends and where the prompt ends, else the
        latter alone. From ends of items in a history the next one is learned (`close_in_history`),
        many times a prompt; the end of the prompt has seen what follows the history, too.

    Raises:
      UserError: the catalog is empty, or the question for keywords leaves no room for an answer.
    """

    def __init__(
        self,
        context: PromptContext,
        prompt_config: PromptConfig,
        rows: np.ndarray,
        *,
        room: PairRoom,
        history: int,
        similar: int,
        history_end: bool,
    ):
        super().__init__(
            context, prompt_config, rows, length=room.prompt, history=history, similar=similar
        )
        self._history_end = history_end
        if not len(self.renderer):
            raise UserError("the catalog has no items; prepare the data again")
        chat = prompt_config.chat
        self._question = chat.ids(tasks.next_keywords(prompt_config.templates) + chat.middle)
        if len(self._question) >= room.words:
            raise UserError(
                f"config.cached.words_length={room.words}: the question for keywords alone has "
                f"{len(self._question)} tokens; raise it"
            )
        self.room, self.most_ends = room, max(history - 1, 0)
        said = self._candidate(0, Counter()).tokens
        self.tail = said[len(said) - room.tail :]

    def users(self, rows: Sequence[int], counts: Counter) -> Batch:
        """A prompt of a source row each; -1 is a row without a prompt."""
        return self.prompts([None if r < 0 else self.prompt(r, counts) for r in rows], rows)

    def prompt(self, row: int, counts: Counter) -> Prompt:
        """What is known of the user of `row`, cut to the room by `prompts.sections.fit`."""
        return self.read(*self.fitted(row, counts), counts)

    def training_prompt(self, row: int, counts: Counter) -> Known:
        """`prompt`, and what can be predicted in it."""
        piece, shown = self.fitted(row, counts)
        history, head = shown[0], self.renderer.prompt_config.chat.head
        ends = self.ends(piece, head, history, counts)
        targets = np.arange(ends[0], ends[-1]) if len(ends) else ends
        return Known(
            self.read(piece, shown, counts),
            targets,
            ends[:-1] - 1,
            self.after_each(row, history, ends),
        )

    def read(self, piece: Piece, shown: Sequence[Section], counts: Counter) -> Prompt:
        """The prompt and where its user is read. Where a tokenizer joins the end of the history
        with what follows, which is counted, and where there is no history: at its end alone."""
        chat = self.renderer.prompt_config.chat
        before, end = chat.head, len(piece) - 1
        if not self._history_end:
            return Prompt(piece, (end,))
        for section in shown:
            if section.name == "history" and section.entries:
                tokens = chat.ids(before + section.prefixes()[-1])
                if np.array_equal(tokens, piece.tokens[: len(tokens)]):
                    return Prompt(piece, (len(tokens) - 1, end))
                counts["history_ends_left_out"] += 1
            before += section.text()
        return Prompt(piece, (end, end))

    def fitted(self, row: int, counts: Counter) -> tuple[Piece, list[Section]]:
        """The prompt and its sections as they are shown."""
        chat = self.renderer.prompt_config.chat
        return prompt_sections.fitted(
            self.sections(row),
            lambda opening: chat.encode(chat.head + opening),
            self.room.prompt,
            counts,
        )

    def ends(self, piece: Piece, before: str, history: Section, counts: Counter) -> np.ndarray:
        """int64[k]: tokens up to the end of each item of a history that follows `before`.

        The prompt has to begin with these tokens: a tokenizer may join what stands at the end of
        an item with what follows. From the first item on that ends so, they are left out, counted
        as `history_targets_left_out`.
        """
        chat, found = self.renderer.prompt_config.chat, []
        for text in history.prefixes():
            tokens = chat.ids(before + text)
            if not np.array_equal(tokens, piece.tokens[: len(tokens)]):
                break
            found.append(len(tokens))
        if left_out := len(history.entries) - len(found):
            counts["history_targets_left_out"] += left_out
        return np.array(found, np.int64)

    def after_each(self, row: int, history: Section, ends: np.ndarray) -> np.ndarray:
        """int32[k - 1]: the item after each end but the last."""
        past = self._past(row)
        return past[len(past) - len(history.entries) :][1 : len(ends)]

    def past(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """int32[n, K]: items of histories that prompts have room for, but the first; -1 = none."""
        shown = sequences.before(self.context.histories, self.rows[rows], self._history)
        return shown[:, 1:]

    def no_negatives(self, user: int) -> np.ndarray:
        """int32[n]: items that do not compete with a target of this user: the interactions of
        training."""
        seen, end = self.context.histories.of(user), self.context.train_end
        return seen if end is None else seen[: end[user]]

    def keywords_prompt(self, item: int) -> Prompt:
        """Words of an item in a prompt of their own: the user row of task `align`."""
        chat, templates = self.renderer.prompt_config.chat, self.renderer.prompt_config.templates
        words = tasks.align_words(templates, self.renderer.words(item))
        piece = chat.encode(chat.head + words)
        return self.read(piece, (), Counter())

    def next_keywords(self, items: Sequence[int], counts: Counter) -> tuple[np.ndarray, np.ndarray]:
        """The question for an item's keywords and the answer, as task `next_keywords` has them:
        int32[n, T], and float32[n, T], 1 for tokens of the answer; -1 is an empty row.

        A long answer loses its end, which is counted.
        """
        room = self.room.words
        tokens, weights = np.zeros((len(items), room), np.int32), np.zeros((len(items), room), "f4")
        chat, templates = self.renderer.prompt_config.chat, self.renderer.prompt_config.templates
        question = self._question
        for at, item in enumerate(items):
            if item < 0:
                continue
            answer = chat.ids(tasks.answer(templates, self.renderer.words(int(item))))
            said = np.concatenate([question, answer, [chat.stop_id]])
            counts["answers_cut"] += len(said) > room
            n = min(len(said), room)
            tokens[at, :n] = said[:n]
            weights[at, len(question) : n] = 1.0
        return tokens, weights

    def prompts(self, prompts: Sequence[Prompt | None], rows: Sequence[int]) -> Batch:
        """The batch of these prompts; they end at position `room.prompt`.

        Raises:
          UserError: a prompt is longer than its room.
        """
        room = self.room.prompt
        batch = _room(len(prompts), room)
        ends = np.zeros((len(prompts), 1 + self._history_end), np.int32)
        for at, prompt in enumerate(prompts):
            if prompt is None:
                continue
            piece = prompt.piece
            if (n := len(piece)) > room:
                raise UserError(
                    f"the prompt of row {rows[at]} has {n} tokens, its room is {room}: raise "
                    "config.cached.prompt_length"
                )
            batch.tokens[at, :n] = piece.tokens
            batch.segment_ids[at, :n] = 1
            batch.positions[at, :, :n] = np.arange(room - n, room)
            ends[at] = prompt.ends
        return dataclasses.replace(batch, ends=ends)

    def items(self, items: Sequence[int], counts: Counter) -> tuple[Batch, np.ndarray]:
        """A row of each item, -1 is an empty one; and where their tails begin, int32[M].

        Raises:
          UserError: an item needs more tokens or patches than it has room, or ends otherwise.
        """
        room = self.room
        batch = _room(len(items), room.item)
        tails = np.full(len(items), room.prompt, np.int32)
        images: list[Sequence[dict]] = [()] * len(items)
        for at, item in enumerate(items):
            if item < 0:
                continue
            piece = self._candidate(int(item), counts)
            n = len(piece) - room.tail
            if not np.array_equal(piece.tokens[n:], self.tail):
                raise UserError(
                    f"config.cached.tail={room.tail}: what is said of items does not end with the "
                    "same tokens that far; lower it"
                )
            patches = sum(len(image["patches"]) for image in piece.images)
            for needed, has, name in ((n, room.item, "length"), (patches, room.patches, "patches")):
                if needed > has:
                    raise UserError(
                        f"item {self.context.catalog.ids[item]}: it needs {needed} of {name}, its "
                        f"room is {has}: raise config.cached.item_{name}"
                    )
            batch.tokens[at, :n] = piece.tokens[:n]
            batch.segment_ids[at, :n] = 1
            batch.positions[at, :, :n] = piece.positions[:, :n] + room.prompt
            if room.tail:
                tails[at] = room.prompt + piece.positions[0, n]
            images[at] = piece.images
        if room.patches:
            packed = pack_images(images, room.patches, self.patch_width)
            batch = dataclasses.replace(batch, images=packed)
        return batch, tails

    def _candidate(self, item: int, counts: Counter) -> Piece:
        """What is said of an item, whose texts are cut so that it fits: the same for all users."""
        for limit, last in limits(self.renderer.prompt_config.text_tokens):
            found: Counter[str] = Counter()
            piece = self.renderer.candidate(item, limit, found)
            if len(piece) - self.room.tail <= self.room.item or last:
                break
        if limit < self.renderer.prompt_config.text_tokens:
            found["items_with_shortened_texts"] += 1
        counts.update(found)
        return piece


def _room(rows: int, length: int) -> Batch:
    return Room(rows=rows, length=length, targets=1).empty().model_inputs()


Counted = tuple[PairBatch, dict[str, int]]  # a batch, and what was left out or cut in making it


class PairBatches(grain.sources.RandomAccessDataSource):
    """The batches of a run by step; a function of (seed, step).

    Every item of a batch is a negative of all users who neither chose it nor had it in training.

    Args:
      prompts: of the training targets.
      steps: how many batches there are.
      users, items: B and M; of the items those that are nobody's target are drawn uniformly.
      align: share of the users' rows that hold the keywords of an item, whose item is the target.
      shard, shards: which equal part of the rows of users and of items is made.

    Raises:
      UserError: no targets; sizes that do not divide; fewer items than M.
    """

    def __init__(
        self,
        prompts: PairPrompts,
        *,
        steps: int,
        users: int,
        items: int,
        align: float,
        seed: int,
        shard: int = 0,
        shards: int = 1,
    ):
        if not len(prompts):
            raise UserError("there are no training targets; the split left no user two items")
        num_items = len(prompts.renderer)
        if items > num_items:
            raise UserError(
                f"config.cached.num_items={items}: the catalog has {num_items}; lower it"
            )
        for name, size in (("users", users), ("items", items)):
            if size % shards:
                raise UserError(
                    f"config.cached.num_{name}={size} does not divide into {shards} input shards; "
                    "make it a multiple"
                )
        self._prompts, self._steps, self._seed = prompts, steps, seed
        self._users, self._items, self._align = users, items, align
        self._shard, self._shards = shard, shards
        histories = prompts.context.histories
        self._targets = histories.items[histories.offsets[prompts.rows[:, 0]] + prompts.rows[:, 1]]
        self._log_frequency = _log_frequency(
            _counts(self._targets, num_items),
            _counts(prompts.past(np.arange(len(prompts))), num_items),
            len(prompts),
            users,
            items,
        )
        self._order = grain.MapDataset.range(len(prompts)).shuffle(seed=seed).repeat()

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Counted:
        counts: Counter[str] = Counter()
        rng = np.random.default_rng((self._seed, step))
        rows = np.array([self._order[step * self._users + i] for i in range(self._users)])
        targets = self._targets[rows]
        aligned = rng.random(self._users) < self._align
        items = self._drawn(rng, targets, rows[~aligned])
        mine = slice(
            self._shard * self._users // self._shards,
            (self._shard + 1) * self._users // self._shards,
        )
        shown: list[Prompt | None] = []
        history_weights = np.zeros((len(rows[mine]), self._prompts.room.prompt), np.float32)
        ends = np.zeros((len(rows[mine]), self._prompts.most_ends), np.int32)
        nexts = np.full(ends.shape, -1, np.int32)
        for at, (row, target) in enumerate(zip(rows[mine], targets[mine], strict=True)):
            if aligned[mine][at]:
                shown.append(self._prompts.keywords_prompt(int(target)))
            else:
                known = self._prompts.training_prompt(int(row), counts)
                shown.append(known.prompt)
                history_weights[at, known.targets] = 1.0
                ends[at, : len(known.ends)] = known.ends
                nexts[at, : len(known.nexts)] = _places(items, known.nexts)
        count = self._items // self._shards
        here = items[self._shard * count :][:count]
        batch, tails = self._prompts.items(here.tolist(), counts)
        counts["examples"] += len(shown)
        wanted = np.where(aligned[mine], -1, targets[mine]).tolist()
        words, word_weights = self._prompts.next_keywords(wanted, counts)
        made = PairBatch(
            words=words,
            word_weights=word_weights,
            history_weights=history_weights,
            history_ends=ends,
            history_nexts=nexts,
            users=self._prompts.prompts(shown, rows[mine].tolist()),
            items=batch,
            tails=tails,
            targets=np.searchsorted(items, targets[mine]).astype(np.int32),
            competes=self._competes(rows[mine], targets[mine], aligned[mine], items),
            log_frequency=self._log_frequency[here],
        )
        return made, dict(counts)

    def _drawn(self, rng: np.random.Generator, targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """int[M], sorted: the targets, items of the histories of `rows`, and any others if these
        are too few."""
        chosen = np.unique(targets)
        past = np.unique(self._prompts.past(rows))
        every = np.arange(len(self._log_frequency))
        for others in (rng.permutation(past[past >= 0]), rng.permutation(every)):
            others = others[~np.isin(others, chosen)][: self._items - len(chosen)]
            chosen = np.concatenate([chosen, others])
        return np.sort(chosen)

    def _competes(
        self, rows: np.ndarray, targets: np.ndarray, aligned: np.ndarray, items: np.ndarray
    ) -> np.ndarray:
        renderer = self._prompts.renderer
        found = np.ones((len(rows), len(items)), bool)
        for at, (row, target) in enumerate(zip(rows, targets, strict=True)):
            if aligned[at]:
                words = renderer.words(int(target))
                found[at] = [renderer.words(int(item)) != words for item in items]
            else:
                user = int(self._prompts.rows[row, 0])
                found[at] = ~np.isin(items, self._prompts.no_negatives(user))
        return found | (items == targets[:, None])


def _log_frequency(
    targets: np.ndarray, past: np.ndarray, rows: int, users: int, items: int
) -> np.ndarray:
    """float32[N]: logarithm of the probability that an item is in a batch: as the target of one of
    its users, from their histories, or drawn beside them.

    targets, past: int[N], of how many of the `rows` an item is the target, or in the history.
    """
    target, known = (1 - (1 - counts / rows) ** users for counts in (targets, past))
    room = max(items - target.sum(), 0)
    of_past = ((1 - target) * known).sum()
    others = max(len(target) - target.sum() - of_past, 1)
    drawn = known * min(room / max(of_past, 1), 1) + (1 - known) * max(room - of_past, 0) / others
    return np.log(np.clip(target + (1 - target) * drawn, 1e-12, 1)).astype(np.float32)


def _counts(items: np.ndarray, num_items: int) -> np.ndarray:
    """int[N]: how often each item is there; -1 is none."""
    return np.bincount(items[items >= 0], minlength=num_items)


def _places(items: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int32[k]: where each of the wanted is among items int[M], sorted; -1 = it is not."""
    at = np.minimum(np.searchsorted(items, wanted), len(items) - 1)
    return np.where(items[at] == wanted, at, -1).astype(np.int32)


def dataset(batches: PairBatches, workers: int, counts: Counter) -> grain.IterDataset:
    """The batches in order, made ahead of their use; `iter()` of it has an exact position.

    workers: processes, 0 = threads of this one; counts: is added to as batches are used.
    """

    def counted(made: Counted) -> PairBatch:
        batch, left_out = made
        counts.update(left_out)
        return batch

    return ahead(grain.MapDataset.source(batches), workers, waiting=1).map(counted)
