"""How full the packed rows of SFT on MovieLens-1M with posters are, and what waiting examples give.

    python benchmarks/packing.py --data=DIR/ml-1m --tokenizer=DIR    # a Qwen's tokenizer

Rows, tasks, texts and sizes of images are those of configs/movielens.py. Genres stand in the place
of the keywords that a model would write, and similar users' items are drawn. Printed for rows with
images and with text alone, and each of --look_ahead: the share of the rows' room for tokens that
holds tokens (`time/occupancy` of a run), of the room for vision patches that holds patches, and the
milliseconds that choosing takes for an example. Fails where the last of --look_ahead fills less
than --least of the room for tokens. Without --tokenizer one is trained on the films.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from absl import app, flags

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

from benchmarks.packing_rows import measured, sources  # noqa: E402
from configs import movielens  # noqa: E402
from mmsrec_jax.methods.settings import Settings  # noqa: E402
from mmsrec_jax.runtime.settings import from_config  # noqa: E402

_DATA = flags.DEFINE_string("data", None, "Folder of MovieLens-1M's atomic files with images.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "Folder of a Qwen's tokenizer; else one is made.")
_LOOK_AHEAD = flags.DEFINE_list("look_ahead", ["0", "64"], "Examples that wait, one after another.")
_ROWS = flags.DEFINE_integer("rows", 8, "Rows of a batch.")
_BATCHES = flags.DEFINE_integer("batches", 50, "Batches that are counted.")
_LEAST = flags.DEFINE_float("least", 0.95, "Share of the room for tokens that has to be filled.")
_OUT = flags.DEFINE_string("out", None, "Where to write the figures as JSON.")


def main(argv: list[str]) -> None:
    del argv
    config = movielens.get_config()
    config.data.root = _DATA.value
    settings = from_config(Settings, config)
    few = False
    report: dict[str, dict[str, Mapping[str, float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, source in sources(settings, _TOKENIZER.value, Path(directory)).items():
            # Made before the first timing, which then is that of choosing and laying out.
            measured(source, settings, int(_LOOK_AHEAD.value[-1]), _ROWS.value, _BATCHES.value)
            for look_ahead in _LOOK_AHEAD.value:
                one = measured(source, settings, int(look_ahead), _ROWS.value, _BATCHES.value)
                report.setdefault(name, {})[look_ahead] = one
                print(
                    f"{name:12} look_ahead {look_ahead:>4}  tokens {one['tokens']:6.1%}  "
                    f"padding {1 - one['tokens']:6.1%}  patches {one['patches']:6.1%}  "
                    f"{one['examples']} examples  {one['milliseconds']:.2f} ms",
                    flush=True,
                )
            few |= one["tokens"] < _LEAST.value
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(few)


if __name__ == "__main__":
    flags.mark_flag_as_required("data")
    app.run(main)
