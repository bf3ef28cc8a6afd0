"""Small damages to valid files, drawn with a seed: of bytes, of JSON values, of chat templates."""

import copy
import json
import random
from typing import Any

_TOKENS = (
    b"", b"\0", b"\n", b"\r", b"\t", b"\t\t", b" ", b"\xff", b"\xef\xbb\xbf", b"\x1b[31m", b"-1",
    b"1e400", b"nan", b"-inf", b" 5", b"1_0", "１２".encode(), "\u2028".encode(), b"{", b"[" * 2000,
    b'"', b"\\ud800", b"../../x", b"/dev/zero", b"a" * 70_000, b"9" * 5000, b"\x7f" * 8,
    b"\xff" * 8,
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**9, 2**31, 2**63, 10**400, -(2**63), 0.5, 1e-9, 1e300, "",
    "x", "1", "../x", "\0", "\ud800", [], [[]], {}, [1], [1, 2, 3], ["x"], [None], {"x": {}},
    "a" * 100_000, [0] * 20_000,
)  # fmt: skip
_RAW = ("NaN", "Infinity", "-Infinity", "1e999", "[" * 3000, '{"a":' * 3000, "9" * 6000, "")
_TEMPLATE = (
    "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "{{", "}}",
    "{%", "%}", "{% if ", "{% endif %}", "{% set x = ", "* 10**9", "| tojson", "| length", "[0]",
    "['text']", ".content.", "{% macro f(x) %}", "{% endmacro %}", "{{ f(1) }}",
    "{{ range(10**9) }}",
    "{% for i in range(99999) %}", "namespace(a=1)", "loop.index", "raise_exception('no')", "{#",
    "#}", "bos_token", "''.__class__", "{% include 'x' %}", "{% generation %}", "{% break %}",
    "messages[0]", "\x00", "\ue002", "<|im_start|>", "{% call f() %}",
)  # fmt: skip


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four damages anywhere."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64, 1000)))
        kind = rng.randrange(6)
        if kind == 0:
            data = data[:at] + bytes(rng.randrange(256) for _ in range(end - at)) + data[end:]
        elif kind == 1:
            data = data[:at] + data[end:]
        elif kind == 2:
            data = data[:at] + rng.choice(_TOKENS) + data[end if rng.random() < 0.5 else at :]
        elif kind == 3:
            data = data[:at] + data[at:end] * rng.randint(2, 5) + data[end:]
        elif kind == 4:
            data = data[:at]
        elif data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    return data


def damaged_json(text: str, rng: random.Random) -> bytes:
    """JSON whose values have another type, size or place; sometimes its bytes are damaged too."""
    value = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        _damage(value, rng)
    written = json.dumps(value)
    if rng.random() < 0.1:
        written = written.replace(json.dumps("@raw"), rng.choice(_RAW))
        written = written.replace(": ", f": {rng.choice(_RAW)}", 1)
    data = written.encode()
    return damaged_bytes(data, rng) if rng.random() < 0.1 else data


def _damage(value: Any, rng: random.Random) -> None:
    """Changes one entry somewhere in a list or object."""
    while isinstance(value, dict | list) and value:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        below = value[key]
        if isinstance(below, dict | list) and below and rng.random() < 0.8:
            value = below
            continue
        kind = rng.randrange(5)
        if kind == 0:
            del value[key]
        elif kind == 1 and isinstance(value, dict):
            value[rng.choice(list(value))] = copy.deepcopy(below)
        else:
            value[key] = copy.deepcopy(rng.choice(_VALUES))
        return


def damaged_template(text: str, rng: random.Random) -> str:
    """A template with pieces of templates put in, taken out or doubled."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(text))
        end = min(len(text), at + rng.randint(0, 20))
        text = text[:at] + rng.choice(_TEMPLATE) + text[end if rng.random() < 0.6 else at :]
    return text
