# Image of a GPU host. CUDA comes with the wheels of jax; the host needs a driver for CUDA 13 (580 or
# newer) and the NVIDIA container toolkit.
#   docker build --file docker/gpu.Dockerfile --tag REGISTRY/mmsrec_jax:0.1.0-gpu .
FROM python:3.12.12-slim-trixie

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 1000 mmsrec
WORKDIR /mmsrec_jax

# Before the code, so that a change of the code does not install everything again: a package without
# modules, and all that it needs.
COPY pyproject.toml requirements.txt README.md LICENSE ./
RUN python -m pip install ".[gcs]" "jax[cuda13]"

COPY mmsrec_jax ./mmsrec_jax
COPY configs ./configs
COPY launch ./launch
RUN python -m pip install --no-deps --editable .

USER mmsrec
CMD ["python", "launch/train.py", "--help"]
