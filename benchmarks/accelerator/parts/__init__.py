"""What `measure.py` measures, one part a file.

Each has `TITLE`, `SECONDS` (a whole number, expected on an H100; both are written out, since they
are read without an import) and `run(ask)`.
"""
