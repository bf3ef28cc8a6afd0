"""What `benchmarks/input.py` compares: the same prompts of the same items, made by two sides."""

import dataclasses
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.qwen_processor import MARKS, processor_of
from mmsrec_jax.data import atomic
from mmsrec_jax.data.records import Catalog, Histories, Item
from mmsrec_jax.hf import tokenizer
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.inputs.item_renderer import PromptConfig
from mmsrec_jax.inputs.recommend import PromptContext, RecommendSource
from mmsrec_jax.prompts import Chat, corpus, tasks
from mmsrec_jax.prompts import sections as prompt_sections
from mmsrec_jax.prompts.templates import FULL, IMAGE

LENGTH = 4096  # of rows with several users' prompts
SHORT = 384  # of rows with one item's
HISTORY = 6
WORDS = ("oak", "red", "soft", "small", "garden", "summer", "paper", "lamp", "kettle", "quiet")


@dataclasses.dataclass(frozen=True)
class Case:
    """data, tokenizer: folders, "" = made ones. pixels: of the largest picture. look_ahead: as that
    of a config, of ours. rows: of a batch of prompts with candidates; batches of items have twice
    as many."""

    data: str
    tokenizer: str
    items: int
    users: int
    negatives: int
    pixels: int
    workers: int
    look_ahead: int
    rows: int = 8


def made_items(count: int) -> list[Item]:
    """Pictures of 480 x 640 with shapes and grain, about as large as a camera's."""
    found = []
    for i in range(count):
        rng = np.random.default_rng(i)
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        shapes = np.asarray(small.resize((640, 480), Image.Resampling.BICUBIC))
        grain = rng.normal(0, 6, shapes.shape)
        stream = io.BytesIO()
        picture = Image.fromarray(np.clip(shapes + grain, 0, 255).astype(np.uint8))
        picture.save(stream, "JPEG", quality=88)
        title, told = (" ".join(rng.choice(WORDS, rng.integers(*few))) for few in ((3, 8), (5, 60)))
        text = {"title": title, "description": told}
        found.append(Item(id=f"i{i}", text=text, image=stream.getvalue()))
    return found


class World:
    """Items, users and prompts of a case, as both sides see them.

    directory: an empty folder for the files of a tokenizer and an image processor.
    """

    def __init__(self, case: Case, directory: Path):
        self.case = case
        items = self._items()
        self.catalog = Catalog.from_items(items)
        if case.tokenizer:
            self.tokens = tokenizer.load(case.tokenizer)
        else:
            words = [" " + text for item in items for text in item.text.values()]
            turns = ["user", "assistant"] * 4
            self.tokens = tokenizer.train(words + turns + corpus(FULL), 800, directory)
        images = transformers.Qwen2VLImageProcessorPil(
            patch_size=14, min_pixels=4 * 28 * 28, max_pixels=case.pixels
        )
        images.save_pretrained(directory)
        self.processor = processor_of("Qwen2VLProcessor", self.tokens, images)
        start, pad, end = self.tokens.convert_tokens_to_ids(list(MARKS))
        ours = ImageProcessor.from_pretrained(directory)
        chat = Chat(
            self.tokens, image_token_id=pad, vision_start_token_id=start,
            vision_end_token_id=end, processor=ours,
        )  # fmt: skip
        self.prompt_config = PromptConfig(chat, FULL, ours, text_tokens=96)
        kept_none = dataclasses.replace(self.prompt_config, image_cache_bytes=0)
        histories = self._histories()
        self.targets = np.stack(
            [np.arange(case.users), np.full(case.users, HISTORY)], 1, dtype=np.int32
        )
        self.users, self.users_kept_none = (
            RecommendSource(
                PromptContext(self.catalog, histories), prompt_config, self.targets,
                length=LENGTH, seed=0, tasks={"pointwise": 1.0}, negatives=case.negatives,
                history=HISTORY,
            )
            for prompt_config in (self.prompt_config, kept_none)
        )  # fmt: skip
        self.items = SummarySource(self.catalog, self.prompt_config, length=LENGTH)

    def _items(self) -> list[Item]:
        case = self.case
        if not case.data:
            return made_items(case.items)
        source, _, _ = atomic.read(Path(case.data))
        return [source[int(i)] for i in np.flatnonzero(source.has_image)[: case.items]]

    def _histories(self) -> Histories:
        rng, users = np.random.default_rng(0), self.case.users
        size, count = HISTORY + 1, len(self.catalog)
        return Histories(
            users=np.array([f"u{u}" for u in range(users)]),
            offsets=np.arange(users + 1) * size,
            items=np.concatenate([rng.permutation(count)[:size] for _ in range(users)]),
            timestamps=np.tile(np.arange(size, dtype=np.float64), users),
        )

    def conversation(self, question: str) -> str:
        """A question in the words of the chat template, pictures as transformers marks them."""
        content = question.replace(IMAGE, "".join(MARKS))
        return self.tokens.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False, add_generation_prompt=True, enable_thinking=False,
        )  # fmt: skip

    def asked_of_item(self, item: int) -> str:
        text = self.items.renderer.text(item, self.prompt_config.text_tokens, Counter())
        return self.conversation(tasks.summarize(FULL, text, has_image=True))

    def asked_of_user(self, row: int, item: int) -> str:
        opening = prompt_sections.render(self.users.sections(row))
        text = self.users.renderer.text(item, self.prompt_config.text_tokens, Counter())
        return self.conversation(opening + tasks.candidate(FULL, text, has_image=True))

    def candidates(self, row: int) -> np.ndarray:
        """int32[1 + negatives], drawn as ours are."""
        target = int(self.users.context.histories.of(row)[HISTORY])
        rng = np.random.default_rng((1, row))
        others = rng.permutation(np.setdiff1d(np.arange(len(self.catalog)), [target]))
        return rng.permutation(np.append(others[: self.case.negatives], target)).astype(np.int32)


# --- ours ----------------------------------------------------------------------------------------


def ours(world: World, job: str) -> Iterator[Counter]:
    """Batches from the first on, by what they hold: "examples" (an item to summarize, or one
    candidate), "pictures", "slots" (tokens with padding) and "tokens" (without)."""
    case, merge = world.case, world.prompt_config.processor.merge_size
    if job == "summarizer":
        made = pipeline.batches(
            world.items, batch_size=2 * case.rows, length=SHORT, targets=1,
            patches=case.pixels // 14**2, shuffle=False, repeat=False, pack=False,
            workers=case.workers,
        )  # fmt: skip
    else:
        made = pipeline.batches(
            world.users if job == "sft, pictures kept" else world.users_kept_none,
            batch_size=case.rows, length=LENGTH, patches=LENGTH * merge**2 // 2,
            answers=LENGTH // 32, targets=LENGTH // 32, workers=case.workers,
            look_ahead=case.look_ahead,
        )  # fmt: skip
    for batch in made:
        counted = batch.index if job == "summarizer" else batch.answer_positions
        yield Counter(
            examples=int((counted >= 0).sum()),
            pictures=int(batch.images.image_ids.max(1).sum()),
            slots=batch.tokens.size,
            tokens=int((batch.segment_ids > 0).sum()),
        )


# --- theirs --------------------------------------------------------------------------------------


class Conversations(Dataset):
    """One conversation with one picture each, made as examples of transformers do."""

    def __init__(self, world: World, job: str):
        self._world, self._job = world, job
        self._pairs = [
            (row, int(item)) for row in range(world.case.users) for item in world.candidates(row)
        ]

    def __len__(self) -> int:
        return len(self._world.catalog) if self._job == "summarizer" else len(self._pairs)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        world = self._world
        if self._job == "summarizer":
            item, text = at, world.asked_of_item(at)
        else:
            row, item = self._pairs[at]
            text = world.asked_of_user(row, item)
        picture = Image.open(io.BytesIO(world.catalog[item].image)).convert("RGB")
        return world.processor(text=[text], images=[picture], return_tensors="pt")


def theirs(world: World, job: str) -> Iterator[Counter]:
    """As `ours`. Batches have about as many tokens."""

    def filled_up(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        ids = [row["input_ids"][0] for row in rows]
        fill = world.tokens.pad_token_id or 0
        return {
            "input_ids": torch.nn.utils.rnn.pad_sequence(ids, True, fill),
            "lengths": torch.tensor([len(row) for row in ids]),
            "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
            "image_grid_thw": torch.cat([row["image_grid_thw"] for row in rows]),
        }

    rows = 2 * world.case.rows * (1 if job == "summarizer" else 4)
    loader = DataLoader(
        Conversations(world, job), rows, shuffle=job != "summarizer",
        num_workers=world.case.workers, collate_fn=filled_up,
    )  # fmt: skip
    for batch in loader:
        yield Counter(
            examples=len(batch["lengths"]),
            pictures=len(batch["image_grid_thw"]),
            slots=batch["input_ids"].numel(),
            tokens=int(batch["lengths"].sum()),
        )


# --- equal results -------------------------------------------------------------------------------


def check_equal(world: World) -> tuple[int, int]:
    """How many prompts were compared with transformers', ids and pixels, and how many are equal."""
    processor = world.prompt_config.processor
    mean, std = np.array(processor.mean), np.array(processor.std)
    compared = equal = 0
    for item in range(len(world.catalog)):
        example = world.items.example(item, 0)
        found = Conversations(world, "summarizer")[item]
        pixels = found["pixel_values"].numpy().reshape(-1, 3, 2, 14, 14)
        patches = example.images[0]["patches"].reshape(-1, 3, 1, 14, 14) * processor.rescale
        patches = (patches - mean[:, None, None, None]) / std[:, None, None, None]
        same = np.array_equal(example.tokens, found["input_ids"][0].numpy())
        compared, equal = compared + 1, equal + (same and np.allclose(patches, pixels, atol=1e-4))
    for row in range(0, world.case.users, 16):
        chosen = world.candidates(row)
        example = world.users.pointwise(row, chosen, int(chosen[0]))
        for at, item in enumerate(chosen, 1):
            # The last token of a suffix is its label.
            seen = (example.suffix_ids == 0) | (example.suffix_ids == at)
            mine = example.tokens[seen][:-1]
            found = world.processor(
                text=[world.asked_of_user(row, int(item))],
                images=[Image.open(io.BytesIO(world.catalog[int(item)].image)).convert("RGB")],
            )["input_ids"][0]
            compared, equal = compared + 1, equal + np.array_equal(mine, found)
    return compared, equal
