"""The published data sets by name: `publisher/config`."""

import difflib
from types import ModuleType

from mmsrec_jax.data.published import (
    amazon_2014,
    amazon_2018,
    amazon_2023,
    hm,
    microlens,
    movielens,
    pixelrec,
)
from mmsrec_jax.data.published.source import Source
from mmsrec_jax.runtime.errors import UserError

PUBLISHERS: dict[str, ModuleType] = {
    module.PUBLISHER: module
    for module in (amazon_2014, amazon_2018, amazon_2023, microlens, movielens, pixelrec, hm)
}


def find(name: str, what: str = "source") -> Source:
    """The data set of a name such as "amazon_reviews_2014/Beauty".

    Raises:
      UserError: there is none; `what` names the field; the nearest names or all follow.
    """
    publisher, _, config = name.partition("/")
    module = PUBLISHERS.get(publisher)
    if module is not None and config in module.CONFIGS:
        return module.source(config)
    if module is None:
        near = difflib.get_close_matches(publisher, PUBLISHERS, n=1)
        guess = f"; did you mean {near[0]}/...?" if near else ""
        raise UserError(
            f"{what}={name!r}: must be atomic, toyshop or PUBLISHER/NAME with a PUBLISHER of "
            f"{', '.join(PUBLISHERS)}{guess}"
        )
    near = difflib.get_close_matches(config, module.CONFIGS, n=1)
    guess = f"; did you mean {publisher}/{near[0]}?" if near else ""
    bases = list(dict.fromkeys(_base(module, each) for each in module.CONFIGS))
    forms = [form for form in getattr(module, "FORMS", ()) if form]
    also = f", alone or with one of {', '.join(forms)}" if forms else ""
    # The nearest name comes last, where long messages are not cut.
    raise UserError(f"{what}={name!r}: {publisher} has {', '.join(bases[:40])}{also}{guess}")


def _base(module: ModuleType, config: str) -> str:
    return config.partition("-")[0] if hasattr(module, "FORMS") else config
