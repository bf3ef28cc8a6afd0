"""MMSRARec and MLLM-SRec in JAX, for TPU and GPU meshes."""

__version__ = "0.1.0"
