"""Every sentence that training and scoring say to the model, as data.

The papers do not publish theirs, so both sets are *ours*. `TERSE` is for models of a few million
parameters trained from scratch, where each token costs training time; `FULL` is English for
pretrained models. Both have the same structure and go through the same builder.
"""

import dataclasses
import string

from mmsrec_jax.data import windows
from mmsrec_jax.prompts import taste_templates

YES_NO = ("yes", "no")
LETTERS = string.ascii_uppercase
IMAGE = "\ue001"  # private-use character that stands for an image until tokens are made


@dataclasses.dataclass(frozen=True)
class Templates:
    """One set of sentences. Fields in braces are filled by `prompts.tasks`.

    Attributes:
      keyword_separator: between the keywords of one item in a list of items.
      item_line, item_separator: one item of a history and what stands between two.
      field_separator: between the text fields of one item.
      image: how an image is introduced; left out where there is none.
      rated: an item of the history with the user's rating.
      followed: an item of the history and the `pause` after it, of which `pauses` has the words:
        hours, days, weeks, months, years.
      history, similar: opening sections of a recommendation prompt; `similar` is left out when
        nothing was retrieved.
      aggregated: in place of `similar`, keywords with numbers, comma-separated.
      candidate: what follows the sections for one candidate, up to the yes/no label.
      rank, rank_option: lettered candidates in one prompt.
      next_keywords, align_item, align_words, vqa, summarize: questions of the other tasks.
      form, form_of_text: what `summarize` says of the answer's form for an item with an image, and
        for one without.
      visual: a question about the image alone.
      visual_answer, visual_answers: a question with its answer, and what stands around all of them.
      told: how `fuse` and `visual` introduce the text.
      fuse: asks for one description of all that is shown before it.
      answer: how an answer in words opens; a space makes a word the token it is inside a text.
      fillers: vague words that a poor summary contains; noise for the warm-up's targets.
      taste: what is said of a user's taste.
    """

    keyword_separator: str
    item_line: str
    item_separator: str
    field_separator: str
    image: str
    rated: str
    followed: str
    pauses: tuple[str, ...]
    history: str
    similar: str
    aggregated: str
    candidate: str
    rank_option: str
    rank: str
    next_keywords: str
    align_item: str
    align_words: str
    vqa: str
    summarize: str
    form: str
    form_of_text: str
    visual: str
    visual_answer: str
    visual_answers: str
    told: str
    fuse: str
    answer: str
    fillers: tuple[str, ...]
    taste: taste_templates.TasteTemplates


TERSE = Templates(
    keyword_separator=" ",
    item_line=" {words}",
    item_separator=",",
    field_separator=" ",
    image=IMAGE,
    rated="{words} {rating}",
    followed="{words} {pause}",
    pauses=("hours", "days", "weeks", "months", "years"),
    history="likes{items}\n",
    similar="similar{items}\n",
    aggregated="similar{items}\n",
    candidate="{image} {text}",
    rank_option="{letter} {words}\n",
    rank="{options}which",
    next_keywords="next",
    align_item="{image} {text}\nkeywords",
    align_words=" {words}\ntitle",
    vqa="{image} {text}\n{attribute}",
    summarize="{image} {text}\nsummary{form}",
    form="",
    form_of_text="",
    visual="{image}{told} {question}",
    visual_answer=" {answer}",
    visual_answers="{answers}",
    told=" {text}",
    fuse="{image}{answers}{told}\nitem",
    answer=" {words}",
    fillers=("nice", "item", "good"),
    taste=taste_templates.TERSE,
)

FULL = Templates(
    keyword_separator=", ",
    item_line="- {words}",
    item_separator="\n",
    field_separator=". ",
    image=f"Image: {IMAGE}\n",
    rated="{words} (rated {rating})",
    followed="{words}; {pause} later",
    pauses=("hours", "days", "weeks", "months", "years"),
    history="A user chose these items, oldest first:\n{items}\n\n",
    similar="Users with a similar history went on to choose:\n{items}\n\n",
    aggregated=(
        "Keywords of what users with a similar history went on to choose, with how many of them "
        "did:{items}\n\n"
    ),
    candidate=(
        "Candidate item:\n{image}Text: {text}\n\n"
        "Will the user choose this item next? Answer yes or no."
    ),
    rank_option="{letter}. {words}\n",
    rank=(
        "Candidate items:\n{options}\n"
        "Which of them will the user choose next? Answer with its letter."
    ),
    next_keywords="Write the keywords of the item that the user will choose next.",
    align_item="{image}Text: {text}\n\nWrite the keywords of this item.",
    align_words="Keywords: {words}\n\nWrite the title of the item that has these keywords.",
    vqa="{image}Text: {text}\n\nWhat is the {attribute} of this item? Answer in a few words.",
    summarize="{image}Text: {text}\n\nSummarize this item in a few keywords. {form}",
    form=(
        "Write what only the image shows and what the text says on separate lines, in exactly this "
        "form:\nimage: keyword, keyword\ntext: keyword, keyword"
    ),
    form_of_text="Write what the text says in exactly this form:\ntext: keyword, keyword",
    visual="{image}{told}\n{question} Answer in a few words.",
    visual_answer="- {question} {answer}\n",
    visual_answers="What its image shows:\n{answers}",
    told="Text: {text}\n",
    fuse=(
        "{image}{answers}{told}\n"
        "Describe this item in one line of short phrases divided by commas: what it is, how it "
        "looks, for whom and for what it is. Say only what is given here."
    ),
    answer="{words}",
    fillers=("nice", "good quality", "product"),
    taste=taste_templates.FULL,
)

TEMPLATES = {"terse": TERSE, "full": FULL}


def corpus(templates: Templates) -> list[str]:
    """Every fixed sentence of a set, for training a tokenizer together with the items' words."""
    texts = []
    sentences = {name: value for name, value in vars(templates).items() if name != "taste"}
    if templates.aggregated == templates.similar:
        del sentences["aggregated"]  # the same sentence once
    of_taste = dict(vars(templates.taste))
    for name in taste_templates.OF_ATTRIBUTES:
        del of_taste[name]
    for value in (*sentences.values(), *of_taste.values()):
        for text in value if isinstance(value, tuple) else (value,):
            names = [name for _, name, _, _ in string.Formatter().parse(text) if name]
            blank = dict.fromkeys(names, "") | {"letter": "A"}
            texts.append(text.format(**blank).replace(IMAGE, ""))
    texts.extend(templates.keyword_separator + word for word in templates.fillers)
    texts.extend(f" {word}" for word in windows.WORDS)
    texts.extend(templates.followed.format(words="", pause=pause) for pause in templates.pauses)
    texts.extend(templates.rated.format(words="", rating=rating) for rating in range(1, 6))
    return [*texts, *YES_NO, *LETTERS, "image: a, a\ntext: a, a"]
