"""The methods, by the name that `config.method` gives them."""

from types import ModuleType

from mmsrec_jax.runtime.config_utils import choose_name


def find(name: str) -> ModuleType:
    """The module whose `run(config, workdir, only)` is the method. Raises UserError if unknown."""
    from mmsrec_jax.methods import mmsrarec, scaling_point, sequential  # only a run needs them

    known = {"mmsrarec": mmsrarec, "sequential": sequential, "scaling": scaling_point}
    return known[choose_name(name, known, what="config.method")]
