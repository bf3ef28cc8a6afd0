"""The methods, by the name that `config.method` gives them."""

from types import ModuleType

from mmsrec_jax.configuration import choose_name


def find(name: str) -> ModuleType:
    """The module whose `run(config, workdir, only)` is the method. Raises UserError if unknown."""
    from mmsrec_jax.methods import heads, mmsrarec, scaling  # only a run needs them

    known = {"mmsrarec": mmsrarec, "heads": heads, "scaling": scaling}
    return known[choose_name(name, known, what="config.method")]
