"""What the files in `configs/` share: variants by name."""

import difflib
from collections.abc import Mapping

from mmsrec_jax.errors import UserError


def choose(variant: str, known: Mapping[str, str], *, file: str) -> str:
    """`variant` if it is among `known` (name -> what it is).

    Raises:
      UserError: it is not; names the nearest one, or all of them.
    """
    if variant in known:
        return variant
    near = difflib.get_close_matches(variant, known, n=1)
    names = ", ".join(f"{file}:{name}" if name else file for name in known)
    guess = f"did you mean {file}:{near[0]}?" if near else f"there are: {names}"
    raise UserError(f"{file} has no variant {variant!r}; {guess}")
