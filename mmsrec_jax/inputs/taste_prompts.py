"""Recommendation prompts of MLLM-SRec: last items, profile, preferences, chain of thought.

*Paper:* profile, dynamic preference and the target's multimodal information are joined in SFT with
multi-step chain-of-thought prompts. *Ours:* the chain is recent preference -> how it moved -> what
the target offers -> yes or no. The first two steps do not depend on the candidate: they end the
prefix that all candidates share. The third is the item's stored summary: in the joint form the
model writes it before the label, in the cached form it is what is said of the item.

In training the first two steps are what counting says of the last window before the target
(`inputs.tastes`), or a given text; in scoring they are the stored text of the same window, which a
model wrote, or what the trained model writes there, or absent. All else is the same to the token.
Nothing is read of the target, and nothing later, but its time: when the user asks is known.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from mmsrec_jax.inputs import example as examples
from mmsrec_jax.inputs.example import Example, Suffix
from mmsrec_jax.inputs.pairs import Known, PairPrompts
from mmsrec_jax.inputs.recommend import (
    CandidateSource,
    PointwisePrompts,
    PromptContext,
    RecommendSource,
    UserPrompts,
)
from mmsrec_jax.inputs.tastes import Tastes
from mmsrec_jax.prompts import Piece, Section, taste
from mmsrec_jax.prompts import sections as prompt_sections

Texts = Mapping[tuple[int, int], str]  # (user, window) -> its text


class Chains(Protocol):
    """A list of texts, or anything that makes each when it is asked for."""

    def __getitem__(self, row: int, /) -> str: ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TasteContext(PromptContext):
    """What is known of items and users when a prompt of MLLM-SRec is written.

    Attributes:
      tastes: ratings, gaps and windows of users.
      preferences: the texts of windows.
      profiles: the texts of whole histories, by the window at whose end they were written; None =
        no profile (ablation).
      chains: of each row of the source, the first two steps of its chain, "" for absent ones; None
        = no chain of thought (ablation): the last window's text stands among the preferences.
      offers: the chain's last step stands before the label (joint form).
      token_weight: of a token of a chain in the loss, against 1 for the label.
    """

    tastes: Tastes
    preferences: Texts
    profiles: Texts | None
    chains: Chains | None
    offers: bool
    token_weight: float = 1.0


class TastePrompts(UserPrompts):
    """What every prompt of a user opens with, in both forms, in training and scoring."""

    context: TasteContext

    def sections(self, row: int) -> list[Section]:
        """Last items, profile, preferences, and the first two steps of the chain.

        The history comes first: in training its later items are predicted inside it, and the texts
        were written with them in view.
        """
        user, position = (int(value) for value in self.rows[row])
        context, templates = self.context, self._templates.taste
        history, *_ = super().sections(row)
        chain = "" if context.chains is None else context.chains[row]
        return [
            dataclasses.replace(history, priority=1),
            taste.texts(
                templates, "profile", templates.profile, self._profile(user, position), priority=2
            ),
            taste.texts(
                templates, "preferences", templates.preferences, self._told(user, position)
            ),
            taste.texts(templates, "chain", templates.chain, [chain] if chain else [], priority=3),
        ]

    def _profile(self, user: int, position: int) -> list[str]:
        windows, profiles = self.context.tastes.windows, self.context.profiles
        index = windows.profiled(position)
        if profiles is None or index is None:
            return []
        return [text] if (text := profiles[user, index]) else []

    def _told(self, user: int, position: int) -> list[str]:
        """Texts of windows, each after the gap since the one before it that is told of."""
        context = self.context
        tastes, templates = context.tastes, self._templates.taste
        told = list(tastes.windows.told(position))
        if context.chains is not None:
            told = told[:-1]  # the chain says it
        found: list[str] = []
        for at, index in enumerate(told):
            gap = None
            if at:
                ends = (tastes.windows.span(other)[1] - 1 for other in (told[at - 1], index))
                gap = tastes.gap(user, *ends)
            if text := context.preferences[user, index]:
                found.append(taste.after(templates, gap, text))
        return found


class TastePairs(TastePrompts, PairPrompts):
    """Rows of users and of items for the cached form. In it disliked items of a user compete."""

    def training_prompt(self, row: int, counts: Counter) -> Known:
        """As of `PairPrompts`; the chain is to be predicted too."""
        chat = self.renderer.prompt_config.chat
        piece, shown = self.fitted(row, counts)
        before, ends, nexts = chat.head, np.zeros(0, np.int64), np.zeros(0, np.int32)
        targets = [ends]
        for section in shown:
            if section.name == "history" and section.entries:
                ends = self.ends(piece, before, section, counts)
                nexts = self.after_each(row, section, ends)
                targets.append(np.arange(ends[0], ends[-1]) if len(ends) else ends)
            if section.name == "chain" and section.entries:
                opening = section.template.partition("{items}")[0]
                first, end = (len(chat.ids(before + text)) for text in (opening, section.text()))
                targets.append(np.arange(first, end))
            before += section.text()
        found = np.concatenate(targets)
        prompt = self.read(piece, shown, counts)
        return Known(prompt, found[found < len(piece)], ends[:-1] - 1, nexts)

    def no_negatives(self, user: int) -> np.ndarray:
        seen, end = super().no_negatives(user), self.context.train_end
        known = len(seen) if end is None else int(end[user])
        return np.setdiff1d(seen, self.context.tastes.disliked(user, known))


class _ChainRecommend(TastePrompts, PointwisePrompts):
    """Pointwise prompts whose answers are chains of thought."""

    def pointwise(self, row: int, candidates: np.ndarray, target: int) -> Example:
        """As of MMSRARec; the chain has a loss, and a target that is not liked is a negative."""
        user, position = (int(value) for value in self.rows[row])
        context = self.context
        if target >= 0 and not context.tastes.is_positive(user, position):
            target = -2
        example = super().pointwise(row, candidates, target)
        if context.chains is None or not context.chains[row]:
            return example
        own = self._chain_tokens(context.chains[row])
        end = int((example.suffix_ids == 0).sum())
        if not np.array_equal(example.tokens[end - len(own) : end], own):
            return example  # there was no room for it
        weights = example.loss_weights.copy()
        weights[end - len(own) : end] = context.token_weight
        return dataclasses.replace(example, loss_weights=weights)

    def suffix(self, item: int, limit: int, counts: Counter) -> Piece | Suffix:
        piece = self.renderer.candidate(item, limit, counts)
        if not self.context.offers:
            return piece
        chat = self.renderer.prompt_config.chat
        words, cut = chat.cut(self.renderer.words(item), limit)
        counts["texts_cut"] += cut
        offers = self._templates.taste.offers.format(words=words)
        return Suffix(piece, chat.ids(offers), self.context.token_weight)

    def _chain_tokens(self, chain: str) -> np.ndarray:
        """int32[n]: tokens of the chain, after the words that open its section."""
        chat, templates = self.renderer.prompt_config.chat, self._templates.taste
        section = taste.texts(templates, "chain", templates.chain, [chain])
        opening = section.template.partition("{items}")[0]
        return chat.ids(section.text())[len(chat.ids(opening)) :]


class TasteRecommend(_ChainRecommend, RecommendSource):
    """Training examples of the joint form."""


class TasteCandidates(_ChainRecommend, CandidateSource):
    """Rows to score in the joint form."""


class ChainTexts(TastePrompts):
    """Prompts up to the chain, which the trained model writes next; arguments as of `UserPrompts`.

    length: of a prompt with its chain.
    """

    patch_width = 0

    def example(self, row: int, draw: int) -> Example:
        del draw
        chat, counts = self.renderer.prompt_config.chat, Counter[str]()
        opening = self._templates.taste.chain.partition("{items}")[0]
        prompt = prompt_sections.fit(
            self.sections(row)[:-1],
            lambda text: chat.encode(chat.head + text + opening),
            self.length,
            counts,
        )
        return examples.sequence(prompt, np.zeros(0, np.int32), index=row, counts=counts)
