"""Everything that the methods say to the model, from words to tokens."""

from mmsrec_jax.prompts.chat import Chat, Piece, yes_no_ids
from mmsrec_jax.prompts.sections import Section
from mmsrec_jax.prompts.summary import Summary, format_summary, parse_summary, phrases
from mmsrec_jax.prompts.templates import FULL, TEMPLATES, TERSE, Templates, corpus

__all__ = [
    "FULL",
    "TEMPLATES",
    "TERSE",
    "Chat",
    "Piece",
    "Section",
    "Summary",
    "Templates",
    "corpus",
    "format_summary",
    "parse_summary",
    "phrases",
    "yes_no_ids",
]
