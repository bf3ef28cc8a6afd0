"""A URL that may be asked for, in its parts."""

import re
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

_LONGEST = 8192  # characters
_PORTS = {"http": 80, "https": 443}
_STAY = "%/:?#[]@!$&'()*+,;=~"  # characters of a URL that mean something in it


class BadLink(ValueError):
    """Says why a URL is not asked for."""


class Link(NamedTuple):
    """host: lower case, as in DNS. target: path and query, as the request line has them."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def url(self) -> str:
        """The whole URL, without a fragment."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.target}"


def parse(url: str) -> Link:
    """The parts of an http or https URL.

    Raises:
      BadLink: any other scheme, no host, a password, control characters.
    """
    url = url.strip()
    if len(url) > _LONGEST:
        raise BadLink(f"a URL of more than {_LONGEST:,} characters")
    if re.search(r"[\x00-\x1f\x7f]", url):
        raise BadLink("a URL with control characters")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode("ascii") if parts.hostname else ""
        target = quote(parts.path or "/", safe=_STAY)
        if parts.query:
            target += "?" + quote(parts.query, safe=_STAY)
    except ValueError as error:  # also a host that is no name, and half a surrogate pair
        raise BadLink("not a URL") from error
    if parts.scheme not in _PORTS:
        raise BadLink("not a URL that begins with http:// or https://")
    if not host:
        raise BadLink("a URL without a host")
    if parts.username is not None or parts.password is not None:
        raise BadLink("a URL with a user name or password, which would be sent on")
    return Link(parts.scheme, host, port or _PORTS[parts.scheme], target)


def redirected(link: Link, location: str) -> Link:
    """Where the header `Location` of the answer at `link` leads. Raises BadLink as `parse`."""
    try:
        return parse(urljoin(link.url, location))
    except ValueError as error:
        reason = str(error) if isinstance(error, BadLink) else "not a URL"
        raise BadLink(f"redirected to {reason}") from error
