"""The one error class for what a user can put right."""

import errno
import os
import re

from mmsrec_jax.runtime.printable import printable, shortened

_LONGEST = 300  # characters of a message that is passed on

_REMEDIES = {
    errno.ENOSPC: "free some space, then the same command goes on",
    errno.EDQUOT: "free some space or raise the quota, then the same command goes on",
    errno.EFBIG: "the disk or a limit of this process allows no larger file; write elsewhere",
    errno.EROFS: "name a folder on a disk that can be written to",
    errno.EACCES: "change its permissions or name another",
    errno.EPERM: "change its permissions or name another",
    errno.ENOENT: "correct the path",
    errno.ENOTDIR: "a file stands where a folder is wanted; name another folder",
    errno.EEXIST: "something else stands there; name another",
    errno.EISDIR: "a folder stands where a file is wanted; name another",
    errno.ENOTEMPTY: "something else stands there; name another",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "the disk or the network of this machine is at fault",
    errno.ESTALE: "the shared disk was mounted anew; start the same command again",
    errno.EMFILE: "raise the limit of open files, ulimit -n",
}
_OF_THE_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE,
}  # fmt: skip


class UserError(Exception):
    """Bad input: one line that names the file or field, the row where there is one, and the remedy.

    Entry points in `launch/` print it without a traceback and exit with status 2. What the message
    quotes of a file is escaped and shortened here.
    """

    def __init__(self, message: str):
        super().__init__(shortened(printable(message)))


def of_os_error(error: OSError) -> UserError:
    """What the operating system refused, in one line: the path, why, and what to do."""
    path = next((str(name) for name in (error.filename2, error.filename) if name), "")
    reason = first_line(error)
    remedy = _REMEDIES.get(error.errno or 0, "")
    return UserError(f"{path}{': ' if path else ''}{reason}{'; ' if remedy else ''}{remedy}")


def of_disguised(error: BaseException) -> UserError | None:
    """The same of an error of a library that says in its words what the operating system refused;
    None where it says nothing of the kind."""
    chain = [error]
    while below := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(below)
    for each in reversed(chain):
        for number, remedy in _REMEDIES.items():
            if number not in _OF_THE_DISK or os.strerror(number) not in str(each):
                continue
            path = re.search(r"(?<![\w.])(/[^\s\"';:,]+)", str(each))
            where = f"{path[1]}: " if path else ""
            return UserError(f"{where}{os.strerror(number)}; {remedy}")
    return None


def root(error: BaseException) -> BaseException:
    """The error that others came of."""
    while below := error.__cause__ or error.__context__:
        error = below
    return error


def first_line(error: BaseException) -> str:
    """The first line of what an error of the system or a library says, or its kind when it says
    nothing: printable, of a length that is read, without the path, which the message around it
    names, and the arguments that tensorstore repeats."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not {error.encoding.upper()} at byte {error.start:,}"
    if isinstance(error, KeyError) and len(error.args) == 1:
        return f"{error.args[0]!r} is missing"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if "set_int_max_str_digits" in said:
        return "a number of thousands of digits"
    if "straddl" in said:  # pyarrow's word for it
        return "a row that is too long"
    if said.startswith("new-line character seen in unquoted field"):
        return "a carriage return inside the line"
    lines = said.partition(" [tensorstore_spec")[0].splitlines()
    line = next((line.strip() for line in lines if line.strip()), type(error).__name__)
    line = re.sub(r"\\([\"'])", r"\1", line)  # of a text quoted in a text
    line = "".join(c if c.isprintable() else " " for c in line)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
