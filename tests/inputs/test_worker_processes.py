"""Workers of launch/train.py: no jax, and the batches and counts of no workers."""

import json

import launched


def test_workers_have_no_jax_and_make_the_same_batches(tmp_path):
    status, said = launched.run(
        "tests/inputs/reporting_train.py",
        "--config=configs/quickstart.py",
        f"--workdir={tmp_path / 'run'}",
        log=tmp_path / "log",
    )
    assert status == 0, said
    found = {}
    for line in said.splitlines():
        if line.startswith("["):
            name, workers, counts, sums = json.loads(line)
            found[name, workers] = counts, sums
    assert len(found) == 6
    for name in ("items True", "items False", "pairs"):
        (counts, sums), (counts_of_workers, sums_of_workers) = found[name, 0], found[name, 1]
        assert counts.pop("made_with_jax") == {"pairs": 3}.get(name, 24)
        assert counts_of_workers.pop("made_with_jax", 0) == 0
        assert counts_of_workers == counts and counts["examples"] == (12 if name == "pairs" else 24)
        assert sums_of_workers == sums and len(sums) > 1
    assert "jax profiler" not in said
