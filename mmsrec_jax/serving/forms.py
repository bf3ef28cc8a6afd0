"""What a form of a page sent: fields and files, of bounded size."""

import email.message
import email.parser
import email.policy
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MOST_FIELDS = 1000


class Refused(Exception):
    """A request that is answered by one line.

    Attributes:
      status: of HTTP, such as 400.
    """

    def __init__(self, line: str, status: int = 400):
        super().__init__(line)
        self.status = status


@dataclass(frozen=True)
class Form:
    """fields: name -> its values, in order. files: name -> the bytes of a non-empty file."""

    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def all(self, name: str) -> list[str]:
        """Every value of a field, oldest first."""
        return list(self.fields.get(name, ()))

    def one(self, name: str) -> str:
        """The only value of a field, without spaces around it; "" where it is absent. Raises
        Refused where there are several."""
        values = self.fields.get(name, ())
        if len(values) > 1:
            raise Refused(f"the field {name!r} is given {len(values)} times; give it once")
        return values[0].strip() if values else ""


def query(text: str) -> Form:
    """What follows the ? of an address. Raises Refused."""
    try:
        found = urllib.parse.parse_qs(
            text, keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS
        )
    except ValueError as error:  # a UnicodeDecodeError is one too
        raise Refused(f"the address cannot be read ({error})") from error
    return Form(found)


def multipart(body: bytes, content_type: str) -> Form:
    """The body of a form with files (RFC 7578). Raises Refused."""
    about = email.message.Message()
    about["Content-Type"] = content_type
    boundary = about.get_boundary()
    if about.get_content_type() != "multipart/form-data" or not boundary:
        raise Refused("the request is no form with files; use the form of the page")
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"))
    if len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise Refused("the form came incomplete; send it again")
    if len(parts) > MOST_FIELDS:
        raise Refused(f"the form has more than {MOST_FIELDS} fields")
    fields: dict[str, list[str]] = {}
    files: dict[str, bytes] = {}
    for part in parts[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name, file_name = _names(head)
        if file_name is None:
            fields.setdefault(name, []).append(_text(content, name))
        elif content:
            if name in files:
                raise Refused(f"the field {name!r} has several files; give one")
            files[name] = content
    return Form(fields, files)


def _names(head: bytes) -> tuple[str, str | None]:
    """Of a field, and of its file where it is one."""
    found = email.parser.BytesHeaderParser(policy=email.policy.compat32).parsebytes(head)
    name, file_name = (
        found.get_param(key, header="content-disposition") for key in ("name", "filename")
    )
    if not isinstance(name, str):
        raise Refused("a part of the form has no name; use the form of the page")
    return name, None if file_name is None else str(file_name)


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"the field {name!r} is no text in UTF-8") from error
