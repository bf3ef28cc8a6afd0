"""What a prompt says of a choice beside the item: its rating, and the pause after it (*ours*).

Neither stands in MMSRARec's prompts. A pause is told in one word, by its order of magnitude, so
that a small model can learn what it means.
"""

import math

from mmsrec_jax.prompts.templates import Templates

_DAY = 86_400.0
SHORTEST = 3_600.0  # seconds; a shorter pause is not told
# Ends, in seconds, of what each word of `Templates.pauses` stands for.
_ENDS = (_DAY, 7 * _DAY, 30 * _DAY, 365 * _DAY, math.inf)


def rated(templates: Templates, words: str, rating: float) -> str:
    """Words of an item and how the user rated it; an unknown rating (NaN) is not told."""
    if math.isnan(rating):
        return words
    return templates.rated.format(words=words, rating=f"{rating:g}")


def followed(templates: Templates, words: str, seconds: float) -> str:
    """Words of an item and how long after it the user chose again, or asks."""
    if not seconds >= SHORTEST:
        return words
    pause = next(p for p, end in zip(templates.pauses, _ENDS, strict=True) if seconds < end)
    return templates.followed.format(words=words, pause=pause)
