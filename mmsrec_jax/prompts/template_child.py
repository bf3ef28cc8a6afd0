"""Renders chat templates in a process of its own: `python -P template_child.py`, JSON in and out.

A template comes with a model's files and is a program. Here it has little memory and time, opens no
file and writes none. Imported by nothing; imports nothing of this package.

In: {"template": ..., "variables": {...}, "conversations": [[{"role", "content"}, ...], ...],
"seconds": ..., "memory": bytes, "longest": characters}. Out: a list of {"text": ...} or
{"error": ...}, one a conversation.
"""

import datetime
import json
import resource
import sys
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

# Some templates write the date. A run that goes on tomorrow must read the same prompts, so it is
# always this one, which Llama's templates write where they are told none.
_TODAY = datetime.datetime(2024, 7, 26)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the answers of a conversation; what it holds is just written."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return _TODAY.strftime(form)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **({"ensure_ascii": False} | options))


def _environment() -> jinja2.Environment:
    """As transformers has it (but for the date), so that a model's own template works."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals = {
        "range": made.globals["range"],
        "namespace": made.globals["namespace"],
        "dict": lambda *pairs, **fields: dict(*pairs, **fields),
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    return made


def _limit(asked: dict[str, Any]) -> None:
    seconds, memory = asked["seconds"], asked["memory"]
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 3),  # the three that are open
    ):
        resource.setrlimit(kind, (most, most))


def _render(asked: dict[str, Any]) -> list[dict[str, str]]:
    found = []
    try:
        template = _environment().from_string(asked["template"])
    except Exception as error:
        return [_said(error)] * len(asked["conversations"])
    for conversation in asked["conversations"]:
        variables = asked["variables"] | {
            "messages": conversation,
            "tools": None,
            "documents": None,
            "add_generation_prompt": False,
        }
        try:
            text = template.render(variables)
            if len(text) > asked["longest"]:
                raise ValueError(f"it writes {len(text):,} characters")
            text.encode()
            found.append({"text": text})
        except Exception as error:
            found.append(_said(error))
    return found


def _said(error: Exception) -> dict[str, str]:
    reason = "".join(c for c in " ".join(str(error).split()) if c.isprintable())[:200]
    reason = reason or type(error).__name__
    return {"error": "it needs too much memory" if isinstance(error, MemoryError) else reason}


def main() -> None:
    asked = json.load(sys.stdin)
    # What jinja2 imports late is imported before files can no longer be opened.
    _render({**asked, "template": "{% for a in [1] %}{{ a|trim }}{% endfor %}"})
    _render({**asked, "template": "{{ raise_exception('no') }}"})
    _render({**asked, "template": "{% for"})
    _limit(asked)
    sys.stdout.write(json.dumps(_render(asked)))


if __name__ == "__main__":
    main()
