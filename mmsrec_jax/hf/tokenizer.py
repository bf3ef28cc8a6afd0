"""A directory's own tokenizer, or a small byte-level BPE with Qwen's tokens for new models."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import logging

from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError, first_line
from mmsrec_jax.runtime.progress import track

if TYPE_CHECKING:  # seconds of import, paid by those who use it
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)
SMALLEST = len(SPECIAL_TOKENS) + 256  # tokens of a vocabulary: these and all bytes
_READ_BY_TRANSFORMERS = (".json", ".txt", ".jinja", ".model")
_LARGEST_FILE = 1 << 28  # bytes
# Qwen2's split: words take the space before them, digits stand alone.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A turn costs two tokens: every token of a prompt is paid for in training time.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message.role != 'assistant' %}{{- '<|im_start|>' }}{%- endif %}"
    "{%- if message.content is string %}{{- message.content }}"
    "{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'text' %}{{- part.text }}"
    "{%- elif part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else %}{{- raise_exception('a message part must be of type text or image') }}"
    "{%- endif %}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>' }}"
    "{%- endfor %}"
)


def load(directory: str | Path) -> "PreTrainedTokenizerBase":
    """The transformers tokenizer of a directory, never looked up on a hub.

    A chat template in `chat_template.json` (published Qwen2-VL and Qwen2.5-VL) is used when the
    tokenizer has none. Raises UserError when the directory holds no tokenizer.
    """
    from transformers import AutoTokenizer

    directory = Path(directory)
    _check_files(directory)
    if not any((directory / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(
            f"{directory}: no tokenizer.json and no vocab.json; is this a model directory?"
        )
    try:
        # Code that the directory brings along is never run, nor is it asked whether it may.
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
        _use(tokenizer)
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise UserError(
            f"{directory}: the tokenizer does not load ({first_line(error)}); fetch its files again"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"{directory}: the tokenizer has no tokenizer.json; convert it to a fast one"
        )
    template = directory / "chat_template.json"
    if tokenizer.chat_template is None and template.exists():
        tokenizer.chat_template = read_json(template).get("chat_template")
    return tokenizer


def _use(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Does what will be done with it: fields of its files that are wrong show only then."""
    ids = tokenizer.encode("a yes") + tokenizer.encode("a yes", add_special_tokens=False)
    tokenizer.decode(ids)
    tokenizer.convert_ids_to_tokens(ids)
    for name in ("eos_token_id", "pad_token_id", "bos_token_id", "unk_token_id"):
        if not isinstance(getattr(tokenizer, name), int | None):
            raise ValueError(f"{name} is {reading.shown(getattr(tokenizer, name))}")
    if not all(type(i) is int for i in [*tokenizer.get_vocab().values(), *ids]):
        raise ValueError("an id is no whole number")
    if not isinstance(tokenizer.special_tokens_map, dict):
        raise ValueError("its special tokens are no map")


def _check_files(directory: Path) -> None:
    """Only regular files are read, and none of absurd size (UserError)."""
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise UserError(f"{directory}: cannot be read ({first_line(error)})") from error
    for path in paths:
        if path.suffix in _READ_BY_TRANSFORMERS:
            with reading.open_regular(path, within=reading.home(directory)) as file:
                if (size := os.fstat(file.fileno()).st_size) > _LARGEST_FILE:
                    raise UserError(
                        f"{path}: has {size:,} bytes; at most {_LARGEST_FILE:,} are read"
                    )


def train(
    texts: Collection[str], vocab_size: int, out_dir: str | Path
) -> "PreTrainedTokenizerBase":
    """Trains a byte-level BPE on `texts`, writes it to `out_dir` and returns it loaded from there.

    Ids 0.. are SPECIAL_TOKENS, then 256 bytes, then merges: any text encodes, and words frequent
    in `texts` (with the space before them) become one token as far as `vocab_size` allows. There
    may be fewer than `vocab_size` tokens when the corpus is used up; `len(tokenizer)` is the size.
    Padding is <|endoftext|>, the end of a turn <|im_end|>; the chat template takes content as a
    string or as a list of text and image parts and adds no system message. The same texts give the
    same files.

    Raises UserError when `vocab_size` cannot hold the special tokens and bytes.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < SMALLEST:
        raise UserError(
            f"vocab_size {vocab_size} is too small: special tokens and bytes need {SMALLEST}"
        )
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )

    def told() -> Iterator[str]:
        yield from track(texts, "count words for the tokenizer", len(texts), "texts")
        logging.info("tokenizer: joining what stands together, to at most %d tokens", vocab_size)

    bpe.train_from_iterator(told(), trainer)
    logging.info("tokenizer: %d tokens", bpe.get_vocab_size())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".tokenizer-") as partial:
        tokenizer.save_pretrained(partial)
        # tokenizer.json is what `load` looks for, so it arrives last
        for path in sorted(Path(partial).iterdir(), key=lambda p: p.name == "tokenizer.json"):
            shutil.move(path, out_dir / path.name)
    return load(out_dir)
