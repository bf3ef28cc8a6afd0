"""How much of each text an example shows when it is too long (*ours*).

An example is kept within its length by one rule: first entries of its sections are left out
(`prompts.sections.fit`), then all its texts lose their tails, halved until it fits; room that this
frees goes to the entries again. What is left out is counted in `Example.counts`.
"""


def limits(text_tokens: int) -> list[tuple[int, bool]]:
    """Lengths of text to try, and whether each is the last."""
    tried = [text_tokens]
    while tried[-1] > 0:
        tried.append(tried[-1] // 2)
    return [(limit, limit == 0) for limit in tried]
