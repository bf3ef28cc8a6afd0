"""The published data sets by name: `publisher/config`.

A publisher's `CONFIGS` are names, or a pattern of them where the name of a data set is free.
"""

import difflib
import re
from types import ModuleType

from mmsrec_jax.data.published import (
    amazon_2014,
    amazon_2018,
    amazon_2023,
    hm,
    lc_rec,
    microlens,
    mllm_msr,
    movielens,
    pixelrec,
)
from mmsrec_jax.data.published.source import Source
from mmsrec_jax.runtime.errors import UserError

PUBLISHERS: dict[str, ModuleType] = {
    module.PUBLISHER: module
    for module in (
        amazon_2014,
        amazon_2018,
        amazon_2023,
        microlens,
        movielens,
        pixelrec,
        hm,
        lc_rec,
        mllm_msr,
    )
}


def find(name: str, what: str = "source") -> Source:
    """The data set of a name such as "amazon_reviews_2014/Beauty".

    Raises:
      UserError: there is none; `what` names the field; the nearest names or all follow.
    """
    publisher, _, config = name.partition("/")
    module = PUBLISHERS.get(publisher)
    if module is None:
        near = difflib.get_close_matches(publisher, PUBLISHERS, n=1)
        guess = f"; did you mean {near[0]}/...?" if near else ""
        raise UserError(
            f"{what}={name!r}: must be atomic, toyshop or PUBLISHER/NAME with a PUBLISHER of "
            f"{', '.join(PUBLISHERS)}{guess}"
        )
    if isinstance(module.CONFIGS, re.Pattern):
        if module.CONFIGS.fullmatch(config):
            return module.source(config)
        raise UserError(f"{what}={name!r}: give the name of the data set, as in {publisher}/Games")
    if config in module.CONFIGS:
        return module.source(config)
    lowered = {each.lower(): each for each in module.CONFIGS}
    near = [lowered[each] for each in difflib.get_close_matches(config.lower(), lowered, n=1)]
    guess = f"; did you mean {publisher}/{near[0]}?" if near else ""
    bases = list(dict.fromkeys(_base(module, each) for each in module.CONFIGS))
    forms = [form for form in getattr(module, "FORMS", ()) if form]
    also = f", alone or with one of {', '.join(forms)}" if forms else ""
    # The nearest name comes last, where long messages are not cut.
    raise UserError(f"{what}={name!r}: {publisher} has {', '.join(bases[:40])}{also}{guess}")


def _base(module: ModuleType, config: str) -> str:
    return config.partition("-")[0] if hasattr(module, "FORMS") else config
