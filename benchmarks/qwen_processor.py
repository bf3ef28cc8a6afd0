"""transformers' Qwen processors without the part for videos, which needs torchvision."""

from typing import Any

import transformers

MARKS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")


def processor_of(name: str, tokens: transformers.PreTrainedTokenizerBase, images: Any) -> Any:
    """The processor of a class by name, of a tokenizer and an image processor."""
    kind = getattr(transformers, name)
    processor = kind.__new__(kind)
    processor.image_processor, processor.tokenizer = images, tokens
    processor.chat_template = None
    for part, mark in (("image", MARKS[1]), ("video", "<|video_pad|>")):
        setattr(processor, f"{part}_token", mark)
        setattr(processor, f"{part}_token_id", tokens.convert_tokens_to_ids(mark))
    return processor
