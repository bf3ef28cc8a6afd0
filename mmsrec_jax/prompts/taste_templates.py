"""Sentences about a user's taste, as data: windows of a history, how it moved, the profile.

MLLM-SRec shows one example of its prompts and no templates, so all of them are *ours*.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TasteTemplates:
    """One set of sentences; `prompts.templates.TEMPLATES` has one in each of its own.

    Attributes:
      passed: time, {gap} in words, {days} as a number.
      gap: what precedes an item or a text that came later than the one before it.
      window: the items of a window.
      before, since: the text of the window before it, and the time between their last items.
      text: a text about the user in a section.
      counts, count: how often words stand on liked items of the whole history.
      stated, attribute: what a user states of themselves, and one attribute of it; only where data
        with such attributes was asked for.
      preferences, profile: texts of windows, and of the whole history.
      chain: the steps of a chain of thought that do not depend on the candidate.
      offers: its last step before the label, in the joint form.
      likes, dislikes, came, went: the four parts of a text about a window, {words} in each; a part
        without words is left out. The first two are step one of a chain, the others step two.
      states, usually, never: the three parts of a profile, {words} in each, as above; the first of
        what the user states.
      ask_preference, ask_profile: what is asked of a window and of a whole history.
    """

    passed: str
    gap: str
    window: str
    before: str
    since: str
    text: str
    counts: str
    count: str
    stated: str
    attribute: str
    preferences: str
    profile: str
    chain: str
    offers: str
    likes: str
    dislikes: str
    came: str
    went: str
    states: str
    usually: str
    never: str
    ask_preference: str
    ask_profile: str


TERSE = TasteTemplates(
    passed="{gap}",
    gap="{gap} ",
    window="had{items}\n",
    before="before{items}\n",
    since="since{items}\n",
    text=" {words}",
    counts="often{items}\n",
    count="{word} {count}",
    stated="is{items}\n",
    attribute="{name} {value}",
    preferences="taste{items}\n",
    profile="profile{items}\n",
    chain="so{items}\n",
    offers="{words}\n",
    likes=" likes {words}",
    dislikes=" not {words}",
    came=" new {words}",
    went=" gone {words}",
    states=" is {words}",
    usually=" likes {words}",
    never=" not {words}",
    ask_preference="write taste",
    ask_profile="write profile",
)

FULL = TasteTemplates(
    passed="{gap} ({days} days)",
    gap="{gap} later: ",
    window="Items that a user chose, oldest first:\n{items}\n\n",
    before="What the user preferred before:\n{items}\n\n",
    since="Since then {items} have passed.\n\n",
    text="{words}",
    counts="How often these words stand on items that the user liked: {items}.\n\n",
    count="{word} ({count})",
    stated="What the user states: {items}.\n\n",
    attribute="{name} {value}",
    preferences="How the user's preferences went, oldest first:\n{items}\n\n",
    profile="Profile of the user:\n{items}\n\n",
    chain="Step by step. What the user prefers now, and how that moved:\n{items}\n\n",
    offers="The item offers: {words}\n",
    likes="Prefers {words}. ",
    dislikes="Does not like {words}. ",
    came="New: {words}. ",
    went="No longer: {words}. ",
    states="States {words}. ",
    usually="Usually likes {words}. ",
    never="Does not like {words}. ",
    ask_preference=(
        "Summarize in a few words what the user prefers now, what the user does not like, and how "
        "that moved against before."
    ),
    ask_profile=(
        "Describe in a few words what the user usually likes and does not like, over the whole "
        "history."
    ),
)

OF_ATTRIBUTES = ("stated", "attribute", "states")
"""Sentences on which no tokenizer is trained: few data sets have attributes of users, and the
vocabulary of the others stays as it is."""
