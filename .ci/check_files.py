"""What every file of the repository has to be: prints one line a problem; status 1 if there is one.

    python .ci/check_files.py FILE...

A text file ends with one newline and has no marks of a merge that was left half done. No file is
larger than 1 MiB.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 1 << 20
MERGE = re.compile(rb"^(<{7} |>{7} |={7}$|\|{7} )", re.MULTILINE)


def problems(path: Path) -> Iterator[str]:
    """One line for each rule that the file breaks."""
    content = path.read_bytes()
    if len(content) > MAX_BYTES:
        yield f"{path}: {len(content)} bytes; {MAX_BYTES} at most"
    if b"\0" in content or not content:  # binary, or empty
        return
    if not content.endswith(b"\n") or content.endswith(b"\n\n"):
        yield f"{path}: must end with one newline"
    if MERGE.search(content):
        yield f"{path}: has the marks of a merge"


def main(names: list[str]) -> int:
    found = [problem for name in names for problem in problems(Path(name))]
    print("\n".join(found), end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
