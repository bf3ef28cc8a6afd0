"""Sentences about a user's taste, as data: windows of a history, how it moved, the profile.

MLLM-SRec shows one example of its prompts and no templates, so all of them are *ours*.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TasteTemplates:
    """One set of sentences; `prompts.templates.TEMPLATES` has one in each of its own.

    Attributes:
      liked, disliked: what follows an item that was rated high enough, or not.
      passed: time, {gap} in words, {days} as a number.
      gap: what precedes an item or a text that came later than the one before it.
      now: the time that has passed since the last item.
      history, entry, separator: the last items of a user with ratings and gaps.
      text: a text about the user in a section.
      window: the items of a window, for the one who writes about it.
      before: the text of the window before it.
      counts, count: how often words stand on liked items of the whole history.
      stated: what the user states of themselves.
      preferences, profile: texts of windows, and of the whole history.
      chain: the steps of a chain of thought that do not depend on the candidate.
      offers: its last step before the label, in the joint form.
      likes, dislikes, came, went: the four parts of a text about a window, {words} in each; a part
        without words is left out. The first two are step one of a chain, the others step two.
      usually, never: the two parts of a profile.
      ask_preference, ask_profile: what is asked of a window and of a whole history.
    """

    liked: str
    disliked: str
    passed: str
    gap: str
    now: str
    history: str
    entry: str
    text: str
    separator: str
    window: str
    before: str
    counts: str
    count: str
    stated: str
    preferences: str
    profile: str
    chain: str
    offers: str
    likes: str
    dislikes: str
    came: str
    went: str
    usually: str
    never: str
    ask_preference: str
    ask_profile: str


TERSE = TasteTemplates(
    liked=" good",
    disliked=" bad",
    passed="{gap}",
    gap="{gap} ",
    now="now{items}\n",
    history="had{items}\n",
    entry=" {words}",
    text=" {words}",
    separator=",",
    window="had{items}\n",
    before="before{items}\n",
    counts="often{items}\n",
    count="{word} {count}",
    stated="user{items}\n",
    preferences="taste{items}\n",
    profile="profile{items}\n",
    chain="so{items}\n",
    offers="{words}\n",
    likes=" likes {words}",
    dislikes=" not {words}",
    came=" new {words}",
    went=" gone {words}",
    usually=" likes {words}",
    never=" not {words}",
    ask_preference="write taste",
    ask_profile="write profile",
)

FULL = TasteTemplates(
    liked=" (liked)",
    disliked=" (not liked)",
    passed="{gap} ({days} days)",
    gap="{gap} later: ",
    now="Since the last item {items} have passed.\n\n",
    history="The user's last items, oldest first:\n{items}\n\n",
    entry="- {words}",
    text="{words}",
    separator="\n",
    window="Items that a user chose, oldest first:\n{items}\n\n",
    before="What the user preferred before:\n{items}\n\n",
    counts="How often these words stand on items that the user liked: {items}.\n\n",
    count="{word} ({count})",
    stated="What the user states of themselves: {items}.\n\n",
    preferences="How the user's preferences went, oldest first:\n{items}\n\n",
    profile="Profile of the user:\n{items}\n\n",
    chain="Step by step. What the user prefers now, and how that moved:\n{items}\n\n",
    offers="The item offers: {words}\n",
    likes="Prefers {words}. ",
    dislikes="Does not like {words}. ",
    came="New: {words}. ",
    went="No longer: {words}. ",
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
