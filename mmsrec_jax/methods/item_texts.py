"""Item understanding of MLLM-SRec: one multimodal summary of every item, and what is true of it.

    `visual_answers`  the base model answers `config.understanding.questions` about every image
    `item_texts`      it fuses the answers with the text into one summary of the item
    `claims`          every claim of both, checked against what is known of the item

The two passes are the paper's; questions, sentences, the other modes and the check are *ours*.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.data.shown_images import with_images
from mmsrec_jax.evaluation.beyond_accuracy import Training
from mmsrec_jax.evaluation.claims import Checker
from mmsrec_jax.inference.text_store import TextStore, digest_of
from mmsrec_jax.inference.texts import Decoding, write_texts
from mmsrec_jax.inputs.understanding import (
    BOTH_VQA,
    IMAGE,
    TEXT,
    Answers,
    FusionSource,
    VisualQuestions,
)
from mmsrec_jax.methods import item_claims
from mmsrec_jax.methods.mllm import MLLMExperiment
from mmsrec_jax.prompts import phrases
from mmsrec_jax.runtime.files import write_parquet
from mmsrec_jax.runtime.settings import as_dict
from mmsrec_jax.runtime.workdir import Step

ANSWERS, TEXTS, CLAIMS = "visual_answers", "item_texts", "claims"  # the steps

_READ_BY_ANSWERS = (
    "questions", "images", "seed", "batch_size", "prompt_length", "patches", "answer_tokens",
)  # fmt: skip
_TEXTS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("answers", pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string())]))),
        ("summary", pa.string()),
        ("inputs", pa.string()),
    ]
)


class ItemTexts:
    """The item summaries of one run.

    Attributes:
      mode: what summaries are written from; "text" in a run without images.
    """

    def __init__(self, run: MLLMExperiment):
        self._run, self._settings = run, run.config.understanding
        self.mode = self._settings.mode if run.config.use.images else TEXT

    def steps(self, inputs: Sequence[str]) -> list[Step]:
        """The steps above; `visual_answers` where the mode reads them.

        inputs: `base_inputs` of the run.
        """
        record, c = self._run.prompt_record(), as_dict(self._settings)
        examples = c.pop("examples")
        asked = {name: c[name] for name in _READ_BY_ANSWERS}
        made = [Step(ANSWERS, self.write_answers, record | {"understanding": asked}, inputs)]
        before = [*inputs, ANSWERS] if self.mode == BOTH_VQA else list(inputs)
        checked = {"examples": examples, "seed": c["seed"]}
        return [
            *(made if self.mode == BOTH_VQA else []),
            Step(TEXTS, self.write_summaries, record | {"understanding": c}, before),
            Step(CLAIMS, self.check_claims, checked, [*before, TEXTS]),
        ]

    def words(self) -> list[str]:
        """Of every item of the catalog, what prompts show of it: the phrases of its summary,
        comma-separated. Empty where the model wrote none: prompts then show the item's text."""
        found = [""] * len(self._run.dataset.catalog)
        for row in self.summaries():
            found[row["item"]] = ", ".join(phrases(row["summary"]))
        if bare := sum(not words for words in found):
            logging.warning(
                "%d of %d items have no summary; prompts show their text", bare, len(found)
            )
        return found

    def catalog(self) -> Catalog:
        """The items with the images that `config.understanding.images` shows of them."""
        c = self._settings
        return with_images(self._run.dataset.catalog, c.images, c.seed)

    def answers(self) -> TextStore:
        """What step `visual_answers` has written so far."""
        return TextStore(self._run.workdir / ANSWERS / "answers.jsonl", key=("item", "question"))

    def summaries(self) -> TextStore:
        """What step `item_texts` has written so far."""
        return TextStore(self._run.workdir / TEXTS / "summaries.jsonl", key="item")

    # --- the steps -------------------------------------------------------------------------------

    def write_answers(self, directory: Path) -> None:
        """`answers.jsonl`: a line for each question about each image; goes on where it stopped."""
        catalog, c = self.catalog(), self._settings
        source = VisualQuestions(
            catalog,
            self._run.prompt_config,
            questions=c.questions,
            items=np.flatnonzero(catalog.has_image),
            length=c.prompt_length,
        )

        def digest(row: int) -> str:
            item, question = source.keys[row]
            return digest_of(question, catalog[item].image)

        def fields(row: int, text: str) -> dict[str, Any]:
            item, _ = source.keys[row]
            return {"id": str(catalog.ids[item]), "answer": self._clean(text)}

        write_texts(
            self.answers(),
            source,
            source.keys,
            lambda: self._run.base.load(ANSWERS),
            self._run.tokenizer,
            name=ANSWERS,
            decoding=self._decoding(c.patches, c.answer_tokens),
            mesh=self._run.mesh,
            fields=fields,
            digest=digest,
        )

    def write_summaries(self, directory: Path) -> None:
        """`summaries.jsonl`, a line an item, which goes on where it stopped; at the end
        `item_texts.parquet`: id, answers, summary and the hash of its inputs."""
        catalog, c = self.catalog(), self._settings
        if self.mode != TEXT and not catalog.has_image.all():
            logging.info(
                "%s: %d of %d items have no image: their text alone is summarized",
                TEXTS, (~catalog.has_image).sum(), len(catalog),
            )  # fmt: skip
        answers = self._answers_of_items()
        source = FusionSource(
            catalog,
            self._run.prompt_config,
            length=c.prompt_length,
            mode=self.mode,
            answers=answers.__getitem__,
        )
        shows_image = self.mode not in (TEXT, BOTH_VQA)

        def digest(item: int) -> str:
            shown = catalog[item]
            text = None if self.mode == IMAGE and shown.image else [shown.text, shown.category]
            return digest_of(self.mode, text, answers[item], shown.image if shows_image else None)

        write_texts(
            self.summaries(),
            source,
            range(len(catalog)),
            lambda: self._run.base.load(TEXTS),
            self._run.tokenizer,
            name=TEXTS,
            decoding=self._decoding(c.patches if shows_image else 0, c.summary_tokens),
            mesh=self._run.mesh,
            fields=lambda item, text: {
                "id": str(catalog.ids[item]), "summary": self._clean(text)
            },
            digest=digest,
        )  # fmt: skip
        written = self.summaries()
        rows = [
            {
                **{name: written[item][name] for name in ("id", "summary", "inputs")},
                "answers": [{"question": q, "answer": a} for q, a in answers[item]],
            }
            for item in range(len(catalog))
        ]
        write_parquet(directory / f"{TEXTS}.parquet", pa.Table.from_pylist(rows, _TEXTS_SCHEMA))

    def check_claims(self, directory: Path) -> None:
        """`claims.json`, `claims.txt` and examples: see `item_claims.write`."""
        catalog, histories, split = self._run.dataset
        written = self.summaries()
        item_claims.write(
            directory,
            self.catalog(),
            Checker(catalog, self._run.world()),
            summaries=[written[item]["summary"] for item in range(len(catalog))],
            answers=self._answers_of_items() if self.mode == BOTH_VQA else None,
            in_training=Training.of(histories, split, len(catalog)).interactions > 0,
            examples=self._settings.examples,
            seed=self._settings.seed,
        )

    def _answers_of_items(self) -> list[Answers]:
        """Of every item; none where it has no image, or in a mode that asks nothing."""
        catalog, questions = self._run.dataset.catalog, self._settings.questions
        if self.mode != BOTH_VQA:
            return [()] * len(catalog)
        store = self.answers()
        return [
            [(asked, store[item, asked]["answer"]) for asked in questions] if has_image else ()
            for item, has_image in enumerate(catalog.has_image)
        ]

    def _decoding(self, patches: int, max_new_tokens: int) -> Decoding:
        return Decoding(
            batch_size=self._settings.batch_size,
            patches=patches,
            max_new_tokens=max_new_tokens,
            gather_weights=self._settings.gather_weights,
            section="config.understanding",
        )

    def _clean(self, text: str) -> str:
        """What was written up to the end of the turn, without empty lines."""
        clean = self._run.prompt_config.chat.clean
        return "\n".join(filter(None, map(clean, text.splitlines())))
