"""Runs, data and models in a bucket (`gs://...`), each with a local copy on every machine.

`objects` asks the bucket, `copies` says where copies lie, `mirror` keeps a folder and its copy the
same, `run` is a run's workdir, `lock` sees to it that there is one run, and `given` copies what a
run only reads. Input workers use the last: like `mirror` it knows of no other processes. See
docs/clusters.md.
"""
