"""What `mmsrec_jax` offers at the top, one function a file; import it from there.

`load` is the exception: it stands in `hf/loading.py`, because folders below this one use it.
"""
