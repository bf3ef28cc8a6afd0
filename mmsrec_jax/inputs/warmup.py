"""What a model learns from the catalog before all other steps (*ours*)."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.inputs import example as examples
from mmsrec_jax.inputs.example import Example
from mmsrec_jax.inputs.item_prompts import PerItem
from mmsrec_jax.inputs.item_renderer import PromptConfig
from mmsrec_jax.inputs.task_mix import shares
from mmsrec_jax.prompts import format_summary, parse_summary, tasks
from mmsrec_jax.runtime.errors import UserError

WARMUP_TASKS = ("describe", "see", "vqa", "retell")

_TITLE_WORDS = 12  # of an item without attributes, at most


class WarmupSource(PerItem):
    """What a model must know before stage 1: what images and texts show (*ours*).

    "describe" answers the summarize prompt from the item's attributes, "see" does so from the image
    alone, "vqa" asks for one attribute, "retell" writes the text from a noisy description.
    Stage 1's rewards ask the model, as its own reference, what "see" and "retell" teach. No task
    says what goes with what: that is for stage 3 to learn from choices.

    Attributes in `image_attributes` belong to the image and are asked and told only where there is
    one; the others belong to the text. An item without attributes is described by the words of its
    title and, for the image, of its category; it cannot be asked about, and is described instead.
    "see" asks an image that shows no attribute for all of them if `image_attributes` names none,
    else for the category or the words of the title. `lacking` says which of this applies.

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
        noise: float = 0.0,
    ):
        super().__init__(catalog, prompt_config, length=length)
        self._tasks, self._shares = shares(tasks, WARMUP_TASKS, "tasks")
        self._seed, self._noise = seed, noise
        self._image_attributes = frozenset(image_attributes)

    def example(self, row: int, draw: int) -> Example:
        rng = np.random.default_rng((self._seed, draw))
        chat, templates = self.renderer.prompt_config.chat, self.renderer.prompt_config.templates
        known = self._known(row)
        task = self._tasks[rng.choice(len(self._tasks), p=self._shares)]
        if task == "retell":
            return self._retell(rng, row, known)
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
        words = [(name in self._image_attributes, value) for name, value in known.items()]
        return words or self._title_words(i)

    def _seen(self, i: int, known: dict[str, str]) -> list[tuple[bool, str]]:
        """Words that the image alone is asked for."""
        shown = self._image_attributes or known
        words = [value for name, value in known.items() if name in shown]
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
    if "see" in tasks and images and not image_attributes:
        instead = f"every attribute ({named})" if attributes else other
        lines.append(f"config.prompts.image_attributes is empty: see asks images for {instead}")
    if lost := num_items - images:
        lines.append(f"{lost:,} of {num_items:,} items have no image: their texts are told alone")
    return lines
