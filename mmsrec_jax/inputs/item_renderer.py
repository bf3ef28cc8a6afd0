"""Items of a catalog as words, patches and ready tokens, each made once per process."""

import dataclasses
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from mmsrec_jax.data.images import ImageError
from mmsrec_jax.data.records import Catalog, Item
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.prompts import Chat, Piece, Templates, tasks
from mmsrec_jax.prompts.settings import PromptSettings
from mmsrec_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How items are put to the model; training and scoring must use equal ones.

    Attributes:
      chat, templates: tokens and sentences.
      processor: None = the model sees no images (an ablation, or a text model).
      fields: text fields of a candidate; those that an item lacks are passed over.
      list_fields: text fields of an item in a list when it has no keywords.
      text_tokens: longer texts of one item lose their tail.
      aggregate: similar users' next items are so many keywords; 0 = they are listed.
      candidate_keywords: a candidate shows its keywords, cut as texts are, beside its image and
        `list_fields`, and not `fields`.
      ratings, pauses: whether items of a history show them (`prompts.choices`).
      attribute_separator: between the values of one attribute; None = an attribute has one value.
      image_cache_bytes: patches kept in each process.
    """

    chat: Chat
    templates: Templates
    processor: ImageProcessor | None = None
    fields: tuple[str, ...] = PromptSettings.fields
    list_fields: tuple[str, ...] = PromptSettings.list_fields
    text_tokens: int = PromptSettings.text_tokens
    aggregate: int = PromptSettings.aggregate
    candidate_keywords: bool = PromptSettings.candidate_keywords
    ratings: bool = PromptSettings.ratings
    pauses: bool = PromptSettings.pauses
    attribute_separator: str | None = PromptSettings.attribute_separator
    image_cache_bytes: int = 256 * 2**20


class ItemRenderer:
    """What prompts say of each item. Picklable; caches stay behind.

    keywords: per item, comma-separated; None or an empty string falls back to the text.
    """

    def __init__(
        self, catalog: Catalog, prompt_config: PromptConfig, keywords: Sequence[str] | None = None
    ):
        if keywords is not None and len(keywords) != len(catalog):
            raise UserError(
                f"{len(keywords)} keyword rows for {len(catalog)} items; run the step that "
                "writes keywords again for this catalog"
            )
        self.catalog, self.prompt_config, self.keywords = catalog, prompt_config, keywords
        self._images = _Cache(prompt_config.image_cache_bytes)
        self._words = _Cache(16 * 2**20)
        self._attributes = _Cache(16 * 2**20)
        self._pieces = _Cache(prompt_config.image_cache_bytes)

    def __len__(self) -> int:
        return len(self.catalog)

    @property
    def patch_width(self) -> int:
        """Bytes of one vision patch, 0 for models without images."""
        processor = self.prompt_config.processor
        return 0 if processor is None else 3 * processor.patch_size**2

    def words(self, i: int) -> str:
        """The item in a list: its keywords, else its text."""

        def make() -> str:
            chat, templates = self.prompt_config.chat, self.prompt_config.templates
            if self.keywords is not None and self.keywords[i].strip():
                return tasks.item_words(templates, chat.clean(self.keywords[i]))
            text, _ = self._text(self.catalog[i], self.prompt_config.list_fields)
            return text

        return self._words.get(i, make, len)

    def keyword_list(self, i: int) -> list[str]:
        """The item's keywords, each once, in lower case; of an item without any its text."""
        written = "" if self.keywords is None else self.keywords[i].lower()
        words = (self.prompt_config.chat.clean(word) for word in written.split(","))
        return list(dict.fromkeys(filter(None, words))) or [self.words(i)]

    def attributes(self, i: int) -> dict[str, str]:
        """The item's attributes, cleaned for a prompt, the values of each comma-separated: a comma
        of a value itself would end a keyword."""

        def make() -> dict[str, str]:
            clean, separator = self.prompt_config.chat.clean, self.prompt_config.attribute_separator
            found = {}
            for name, said in self.catalog[i].attributes.items():
                values = [said] if separator is None else said.split(separator)
                cleaned = (clean(value.replace(",", " ")) for value in values)
                found[name] = ", ".join(filter(None, cleaned))
            return {name: value for name, value in found.items() if value}

        return self._attributes.get(i, make, lambda value: 200 * len(value))

    def text(self, i: int, limit: int, counts: Counter) -> str:
        """The item's text fields in at most `limit` tokens; a cut is counted."""
        text, cut = self._words.get(
            (i, limit),
            lambda: self._text(self.catalog[i], self.prompt_config.fields, limit),
            lambda value: len(value[0]),
        )
        counts["texts_cut"] += cut
        return text

    def candidate_text(self, i: int, limit: int, counts: Counter) -> str:
        """What a candidate shows beside its image, in at most `limit` tokens (of title and keywords
        each, where it shows those); a cut is counted."""
        prompt_config = self.prompt_config
        if not (prompt_config.candidate_keywords and self.keywords and self.keywords[i].strip()):
            return self.text(i, limit, counts)
        title, _ = self._text(self.catalog[i], prompt_config.list_fields, limit)
        words, cut = prompt_config.chat.cut(self.words(i), limit)
        counts["texts_cut"] += cut
        return prompt_config.templates.field_separator.join(filter(None, (title, words)))

    def image(self, i: int, counts: Counter) -> dict | None:
        """Patches, None for models without images; a missing or unusable image is counted."""
        processor = self.prompt_config.processor
        if processor is None:
            return None

        def make() -> dict | None:
            try:
                picture = self.catalog.picture(i)
                return None if picture is None else processor.patchify(picture)
            except (ImageError, UserError):
                return None

        image = self._images.get(i, make, lambda value: value["patches"].nbytes if value else 0)
        counts["images_missing"] += image is None
        return image

    def candidate(self, i: int, limit: int, counts: Counter) -> Piece:
        """The suffix of a candidate up to its yes/no label."""

        def make() -> tuple[Piece, Counter]:
            prompt_config = self.prompt_config
            found: Counter[str] = Counter()
            image = self.image(i, found)
            text = self.candidate_text(i, limit, found)
            question = tasks.candidate(prompt_config.templates, text, image is not None)
            images = [] if image is None else [image]
            return prompt_config.chat.encode(question + prompt_config.chat.middle, images), found

        def size(value: tuple[Piece, Counter]) -> int:
            piece, _ = value
            return 16 * len(piece) + sum(image["patches"].nbytes for image in piece.images)

        piece, found = self._pieces.get((i, limit), make, size)
        counts.update(found)
        return piece

    def _text(
        self, item: Item, fields: Sequence[str], limit: int | None = None
    ) -> tuple[str, bool]:
        chat, templates = self.prompt_config.chat, self.prompt_config.templates
        text = templates.field_separator.join(
            chat.clean(item.text[name]) for name in fields if item.text.get(name)
        )
        text = text or chat.clean(item.category or next(iter(item.text.values()), ""))
        return chat.cut(text, self.prompt_config.text_tokens if limit is None else limit)


class _Cache:
    """Least recently used values up to a number of bytes; shared by reading threads."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._reset()

    def _reset(self) -> None:
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, int]:
        return {"capacity": self._capacity}

    def __setstate__(self, state: dict[str, int]) -> None:
        self._capacity = state["capacity"]
        self._reset()

    def get(self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value = make()
        with self._lock:
            if key not in self._values:
                cost = 256 + size(value)
                self._values[key] = value, cost
                self._bytes += cost
                while self._bytes > self._capacity and len(self._values) > 1:
                    self._bytes -= self._values.popitem(last=False)[1][1]
        return value
