"""Data sets as their publishers offer them: read as they are, and registered with TFDS.

One module a publisher; `catalog` finds a data set by its name, `read` makes items and histories of
it, `builders` has the TFDS data sets.
"""

from mmsrec_jax.data.published import builders as builders  # registers them
