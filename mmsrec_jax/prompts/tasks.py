"""Conversations of every task, as text: words in, what the user says out.

Answers are the caller's. `IMAGE` marks in the returned text stand for one image each, in order.
"""

from collections.abc import Sequence

from mmsrec_jax.prompts.templates import IMAGE, LETTERS, Templates


def item_words(templates: Templates, keywords: str) -> str:
    """Comma-separated keywords as they stand in a list of items."""
    words = (word.strip() for word in keywords.split(","))
    return templates.keyword_separator.join(word for word in words if word)


def illustrated(words: str, has_image: bool) -> str:
    """An item in a list, behind its image where that is shown."""
    return f"{IMAGE} {words}" if has_image else words


def candidate(templates: Templates, text: str, has_image: bool) -> str:
    """One candidate up to the yes/no label; with sections before it, a whole pointwise prompt."""
    return templates.candidate.format(image=_image(templates, has_image), text=text)


def rank(templates: Templates, options: Sequence[str]) -> str:
    """Lettered candidates (at most 26) and the question which comes next; answer: the letter."""
    lines = (
        templates.rank_option.format(letter=letter, words=words)
        for letter, words in zip(LETTERS[: len(options)], options, strict=True)
    )
    return templates.rank.format(options="".join(lines))


def next_keywords(templates: Templates) -> str:
    """The question after the sections; answer: the next item's keywords."""
    return templates.next_keywords


def align_item(templates: Templates, text: str, has_image: bool) -> str:
    """Item to keywords."""
    return templates.align_item.format(image=_image(templates, has_image), text=text)


def align_words(templates: Templates, words: str) -> str:
    """Keywords to item; answer: its title."""
    return templates.align_words.format(words=words)


def vqa(templates: Templates, attribute: str, text: str, has_image: bool) -> str:
    """What is the `attribute` of this item?"""
    return templates.vqa.format(
        image=_image(templates, has_image), text=text, attribute=attribute.replace("_", " ")
    )


def summarize(templates: Templates, text: str, has_image: bool) -> str:
    """Stage 1's prompt; answers have the form of `prompts.summary`."""
    form = templates.form if has_image else templates.form_of_text
    return templates.summarize.format(image=_image(templates, has_image), text=text, form=form)


def visual(templates: Templates, question: str, text: str, has_image: bool) -> str:
    """A question about the image; about the text where there is no image."""
    told = "" if has_image else _told(templates, text)
    return templates.visual.format(image=_image(templates, has_image), told=told, question=question)


def fuse(
    templates: Templates, text: str, has_image: bool, answers: Sequence[tuple[str, str]] = ()
) -> str:
    """One description of an item, by whatever of these is there; answer: phrases with commas.

    answers: (question about the image, its answer) each. An empty text is left out.
    """
    lines = (
        templates.visual_answer.format(question=question, answer=words)
        for question, words in answers
    )
    shown = templates.visual_answers.format(answers="".join(lines)) if answers else ""
    return templates.fuse.format(
        image=_image(templates, has_image), answers=shown, told=_told(templates, text)
    )


def answer(templates: Templates, words: str) -> str:
    """An answer in words; yes_no_ids, letters and summaries stand as they are."""
    return templates.answer.format(words=words)


def _image(templates: Templates, has_image: bool) -> str:
    return templates.image if has_image else ""


def _told(templates: Templates, text: str) -> str:
    return templates.told.format(text=text) if text else ""
