"""A tokenizer's chat template: conversations in its words, rendered where it can do no harm."""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsrec_jax.runtime.errors import UserError

Message = Mapping[str, Any]
Conversation = Sequence[Message]

QUESTION, ANSWER = "\ue002", "\ue003"  # private-use characters that stand for the two
_SYSTEM = "\ue004"
_PAIR = ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER})

_CHILD = Path(__file__).with_name("template_child.py")
_LONGEST_TEMPLATE = 1 << 20  # characters
_LONGEST_TEXT = 1 << 23  # characters of a conversation
_MEMORY = 1 << 30  # bytes of the process that renders
_SECONDS = 5  # of computing, and for each conversation ...
_SECONDS_EACH = 0.02
_PATIENCE = 12  # times as long may pass on a busy machine


class ChatTemplate:
    """The chat template of a tokenizer. Picklable, free of transformers.

    Content is given to it as a text or, where it shows none then, as a list of one part
    `{"type": "text", "text": ...}`: published LLaVA folders want that.

    Attributes:
      head, middle, tail: what it writes before, between and after one question and one answer.
      turns: what it writes around the parts of longer conversations, as far as it writes these.

    Raises:
      UserError: there is no template, it fails or exceeds its limits, or it does not show the
        question and the answer once each, in this order.
    """

    def __init__(self, tokenizer: Any):
        self._template = _template(tokenizer)
        special = tokenizer.special_tokens_map.items()
        self._variables = {name: _plain(value) for name, value in special}
        asked = [_PAIR, [*_PAIR, *_PAIR], [{"role": "system", "content": _SYSTEM}, *_PAIR]]
        rendered = self._try(
            [_in_form(each, in_parts) for in_parts in (False, True) for each in asked]
        )
        forms = [rendered[: len(asked)], rendered[len(asked) :]]
        shown = [_shows_both(pair) for pair, *_ in forms]
        if not any(shown):
            failed = [pair for pair, *_ in forms if isinstance(pair, UserError)]
            if len(failed) == len(forms):
                raise failed[0]
            raise UserError(
                "the chat template must show the question and the answer once each, in this order"
            )
        self._in_parts = not shown[0]
        pair, *longer = forms[self._in_parts]
        assert isinstance(pair, str), "it shows both"
        self.head, rest = pair.split(QUESTION)
        self.middle, self.tail = rest.split(ANSWER)
        self.turns = [self.middle, *_between(longer)]

    def render(self, conversations: Sequence[Conversation]) -> list[str]:
        """Each conversation as the template writes it.

        Raises UserError, with the number of the conversation, where it fails or takes too much.
        """
        asked = [_in_form(conversation, self._in_parts) for conversation in conversations]
        found = []
        for row, text in enumerate(self._try(asked)):
            if isinstance(text, UserError):
                raise UserError(f"row {row}: {text}") from None
            found.append(text)
        return found

    def _try(self, asked: Sequence[Conversation]) -> list[str | UserError]:
        variables = json.dumps(self._variables)
        return list(_rendered(self._template, variables, json.dumps(asked), len(asked)))


def _in_form(conversation: Conversation, in_parts: bool) -> Conversation:
    """With content that is text as a list of parts, if so asked."""
    if not in_parts:
        return [dict(message) for message in conversation]
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else dict(message)
        for message in conversation
    ]


def _template(tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template; add chat_template.json to it")
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several, none of which is the default
        raise UserError(f"the tokenizer's chat template: {' '.join(str(error).split())}") from None
    if not isinstance(template, str) or len(template) > _LONGEST_TEMPLATE:
        raise UserError(
            f"the tokenizer's chat template must be a text of at most {_LONGEST_TEMPLATE:,} "
            "characters"
        )
    return template


@functools.lru_cache(maxsize=256)
def _rendered(template: str, variables: str, conversations: str, count: int) -> list:
    """str or UserError for each conversation; all but the count as JSON."""
    seconds = round(_SECONDS + count * _SECONDS_EACH)
    asked = {
        "template": template,
        "variables": json.loads(variables),
        "conversations": json.loads(conversations),
        "seconds": seconds,
        "memory": _MEMORY + 20 * len(conversations),
        "longest": _LONGEST_TEXT,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD)],
            input=json.dumps(asked).encode(),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            timeout=seconds * _PATIENCE,
            check=True,
        )
        answers = json.loads(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        killed = isinstance(error, subprocess.CalledProcessError) and error.returncode < 0
        reason = "needs too much time or memory"
        if not killed and not isinstance(error, subprocess.TimeoutExpired):
            reason = f"could not be rendered ({type(error).__name__})"
        return [UserError(f"the tokenizer's chat template {reason}; use another")] * count
    return [
        answer["text"]
        if "text" in answer
        else UserError(f"the tokenizer's chat template fails: {answer['error']}")
        for answer in answers
    ]


def _shows_both(text: str | UserError) -> bool:
    if isinstance(text, UserError) or text.count(QUESTION) != 1 or text.count(ANSWER) != 1:
        return False
    return text.index(QUESTION) < text.index(ANSWER)


def _between(texts: Sequence[str | UserError]) -> list[str]:
    """What stands before and between system messages, questions and answers of longer texts."""
    found = []
    for text in texts:
        if isinstance(text, str):
            pieces = re.split(f"[{_SYSTEM}{QUESTION}{ANSWER}]", text)
            found += pieces[0 if _SYSTEM in text else 1 : -1]
    return found


def _plain(value: Any) -> Any:
    """A special token, or a list of them, as text."""
    return [str(each) for each in value] if isinstance(value, list | tuple) else str(value)
