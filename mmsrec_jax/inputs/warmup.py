"""What a model learns from the catalog before all other steps (*ours*)."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.inputs import example as examples
from mmsrec_jax.inputs.example import Example
from mmsrec_jax.inputs.item_prompts import PerItem
from mmsrec_jax.inputs.item_renderer import PromptConfig
from mmsrec_jax.inputs.task_mix import shares
from mmsrec_jax.inputs.understanding import (
    BOTH_VQA,
    IMAGE,
    MODES,
    TEXT,
    fusion_example,
    visual_example,
)
from mmsrec_jax.prompts import format_summary, parse_summary, tasks
from mmsrec_jax.runtime.errors import UserError

WARMUP_TASKS = ("describe", "see", "vqa", "retell", "look", "fuse")
ASKING = ("look", "fuse")  # those that read the questions of item understanding

_WORD = re.compile(r"[^\W_]+")
_TITLE_WORDS = 12  # of an item without attributes, at most


class WarmupSource(PerItem):
    """What a model must know before stage 1: what images and texts show (*ours*).

    "describe" answers the summarize prompt from the item's attributes, "see" does so from the image
    alone, "vqa" asks for one attribute, "retell" writes the text from a noisy description.
    Stage 1's rewards ask the model, as its own reference, what "see" and "retell" teach. "look" and
    "fuse" are the two prompts of item understanding: an open question about the image alone, and
    one summary of all that a mode shows, every mode as often as the others. No task says what goes
    with what: that is for stage 3 to learn from choices.

    Attributes in `image_attributes` belong to the image and are asked and told only where there is
    one; the others belong to the text. An item without attributes is described by the words of its
    title and, for the image, of its category; it cannot be asked about, and is described instead.
    "see" asks an image that shows no attribute for all of them if `image_attributes` names none,
    else for the category or the words of the title. `lacking` says which of this applies. A
    question of "look" is answered by the attributes that it names and the image shows, or by all
    that the image shows if it names none; "fuse" is answered by the attributes of what the mode
    shows, once each and in order.

    questions: of "look", and of the visual answers that "fuse" reads.
    wrong_answers: with this probability these are of another item that is drawn, and the summary is
    the item's own: a model that writes wrong answers shall not put them into summaries.
    noise: targets of "describe" leave out each keyword with this probability (never all), come in
    random order, and with this probability each repeat a keyword or contain a filler word; stage 1
    has something to improve. 0 = every attribute once, in order.
    """

    def __init__(
        self,
        catalog: Catalog,
        prompt_config: PromptConfig,
        *,
        length: int,
        seed: int,
        tasks: Mapping[str, float],
        image_attributes: Sequence[str] = (),
        questions: Sequence[str] = (),
        noise: float = 0.0,
        wrong_answers: float = 0.0,
    ):
        super().__init__(catalog, prompt_config, length=length)
        self._tasks, self._shares = shares(tasks, WARMUP_TASKS, "config.warmup.tasks")
        self._seed, self._noise, self._wrong_answers = seed, noise, wrong_answers
        self._image_attributes = frozenset(image_attributes)
        self._questions = tuple(questions)
        if not questions and set(ASKING) & set(self._tasks):
            raise UserError(
                "config.warmup.tasks gives look or fuse a share, but "
                "config.understanding.questions is empty; name questions, or set both shares to 0"
            )

    def example(self, row: int, draw: int) -> Example:
        rng = np.random.default_rng((self._seed, draw))
        chat, templates = self.renderer.prompt_config.chat, self.renderer.prompt_config.templates
        known = self._known(row)
        task = self._tasks[rng.choice(len(self._tasks), p=self._shares)]
        if task == "retell":
            return self._retell(rng, row, known)
        if task == "fuse":
            return self._fuse(rng, row, known, MODES[rng.integers(len(MODES))])
        if task == "look" and self.renderer.image(row, Counter()) is not None:
            question = self._questions[rng.integers(len(self._questions))]
            seen = self._ids(self._look(row, known, question))
            return visual_example(self.renderer, row, question, seen, length=self.length)
        if task == "vqa" and known:
            name = sorted(known)[rng.integers(len(known))]
            answer = tasks.answer(templates, known[name])

            def ask(text: str, has_image: bool) -> str:
                return tasks.vqa(templates, name, text, has_image)
        else:
            alone = task == "see" and self.renderer.image(row, Counter()) is not None
            words = self._seen(row, known) if alone else self._described(row, known)
            answer = self._noisy(rng, words)

            def ask(text: str, has_image: bool) -> str:
                return tasks.summarize(templates, "" if alone else text, has_image)

        return self._answered(row, ask, np.append(chat.ids(answer), chat.stop_id))

    def _retell(self, rng: np.random.Generator, i: int, known: dict[str, str]) -> Example:
        chat, templates = self.renderer.prompt_config.chat, self.renderer.prompt_config.templates
        summary = parse_summary(self._noisy(rng, self._described(i, known)))
        words = tasks.item_words(templates, ", ".join(summary.image + summary.text))
        if rng.random() < self._noise:
            words = ""
        text = self.renderer.text(i, self.renderer.prompt_config.text_tokens, Counter())
        answer = np.append(chat.ids(tasks.answer(templates, text)), chat.stop_id)
        question = tasks.align_words(templates, words)
        prompt = chat.encode(chat.head + question + chat.middle)
        return examples.sequence(prompt, answer, index=i, counts=Counter())

    def _fuse(self, rng: np.random.Generator, i: int, known: dict[str, str], mode: str) -> Example:
        if self.renderer.image(i, Counter()) is None:
            mode = TEXT
        if mode == TEXT:
            known = {name: v for name, v in known.items() if name not in self._image_attributes}
        words = self._seen(i, known) if mode == IMAGE else self._described(i, known)
        seen, shown, answers = i, known, []
        if self._wrong_answers and rng.random() < self._wrong_answers:
            seen = int(rng.integers(len(self)))
        if mode == BOTH_VQA:
            shown = known if seen == i else self._known(seen)
            answers = [(asked, self._look(seen, shown, asked)) for asked in self._questions]
        return fusion_example(
            self.renderer,
            i,
            mode,
            answers,
            self._ids(", ".join(dict.fromkeys(word for _, word in words))),
            length=self.length,
        )

    def _look(self, i: int, known: dict[str, str], question: str) -> str:
        """What the image answers."""
        words = set(_WORD.findall(question.lower()))
        named = [
            value
            for name, value in known.items()
            if name in (self._image_attributes or known) and words.issuperset(_WORD.findall(name))
        ]
        return ", ".join(named or (word for _, word in self._seen(i, known)))

    def _ids(self, words: str) -> np.ndarray:
        """An answer in words, to its end."""
        chat, templates = self.renderer.prompt_config.chat, self.renderer.prompt_config.templates
        return np.append(chat.ids(tasks.answer(templates, words)), chat.stop_id)

    def _known(self, i: int) -> dict[str, str]:
        """Attributes that the prompt gives a chance to know."""
        visible = self.renderer.image(i, Counter()) is not None
        return {
            name: value
            for name, value in self.renderer.attributes(i).items()
            if visible or name not in self._image_attributes
        }

    def _described(self, i: int, known: dict[str, str]) -> list[tuple[bool, str]]:
        """Words of an item, and whether each is of the image."""
        words = [
            (name in self._image_attributes, value)
            for name, values in known.items()
            for value in values.split(", ")
        ]
        return words or self._title_words(i)

    def _seen(self, i: int, known: dict[str, str]) -> list[tuple[bool, str]]:
        """Words that the image alone is asked for."""
        shown = self._image_attributes or known
        words = [v for name, values in known.items() if name in shown for v in values.split(", ")]
        if not words:
            named = self._title_words(i)
            words = [word for in_image, word in named if in_image] or [word for _, word in named]
        return [(True, word) for word in words]

    def _noisy(self, rng: np.random.Generator, words: list[tuple[bool, str]]) -> str:
        """The answer that names these words, with the noise of the source."""
        if self._noise and words:
            words = [words[k] for k in rng.permutation(len(words))]
            kept = [word for word in words if rng.random() >= self._noise] or words[:1]
            if rng.random() < self._noise:
                kept.append(kept[rng.integers(len(kept))])
            if rng.random() < self._noise:
                fillers = self.renderer.prompt_config.templates.fillers
                filler = fillers[rng.integers(len(fillers))]
                in_image, _ = kept[rng.integers(len(kept))]
                kept.insert(int(rng.integers(len(kept) + 1)), (in_image, filler))
            words = kept
        return format_summary(
            [word for in_image, word in words if in_image],
            [word for in_image, word in words if not in_image],
        )

    def _title_words(self, i: int) -> list[tuple[bool, str]]:
        clean, item = self.renderer.prompt_config.chat.clean, self.renderer.catalog[i]
        title = item.text.get("title") or next(iter(item.text.values()), "")
        said = clean(title.replace(",", " ")).lower().split()[:_TITLE_WORDS]
        words = [(False, word) for word in dict.fromkeys(said)]
        if item.category and self.renderer.image(i, Counter()) is not None:
            words.insert(0, (True, clean(item.category.replace(",", " "))))
        return words


def lacking(
    coverage: Mapping[str, int],
    num_items: int,
    *,
    tasks: Collection[str],
    image_attributes: Sequence[str],
) -> list[str]:
    """What items lack for `tasks`, each a line for people with what is taken instead.

    coverage: how many items have "attribute NAME", "text NAME", "category", "image"
      (`data.report.Report.coverage`).

    Raises:
      UserError: `image_attributes` names what no item has, or there is nothing to describe.
    """
    kinds = [name.partition(" ") for name in coverage]
    attributes = [name for kind, _, name in kinds if kind == "attribute"]
    texts = [name for kind, _, name in kinds if kind == "text"]
    named = ", ".join(attributes) if attributes else "none (config.data.attribute_fields)"
    if unknown := [name for name in image_attributes if name not in attributes]:
        raise UserError(
            f"config.prompts.image_attributes={tuple(image_attributes)!r}: no item has an "
            f"attribute {unknown[0]!r}; attributes are {named}"
        )
    category, images = coverage.get("category", 0), coverage.get("image", 0)
    if not (attributes or texts or category):
        raise UserError(
            "the items have neither attributes nor texts nor a category, which the warm-up tells; "
            "name columns in config.data.attribute_fields or config.data.text_fields"
        )
    lines, other = [], "their category" if category else "words of their titles"
    if not attributes and "vqa" in tasks:
        lines.append(
            "no item has an attribute (config.data.attribute_fields): vqa describes items by title "
            "and category instead"
        )
    if asking := [name for name in ("see", "look") if images and name in tasks]:
        instead = f"every attribute ({named})" if attributes else other
        verb = "asks" if len(asking) == 1 else "ask"
        if not image_attributes:
            lines.append(
                "config.prompts.image_attributes is empty: "
                f"{' and '.join(asking)} {verb} images for {instead}"
            )
    if lost := num_items - images:
        lines.append(f"{lost:,} of {num_items:,} items have no image: their texts are told alone")
    return lines
