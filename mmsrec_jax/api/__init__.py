"""What `mmsrec_jax` offers at the top, one function a file; import it from there."""
