"""The law against data made from known laws, and a study of made-up runs."""

import json

import numpy as np
import pytest
import step_records

from mmsrec_jax.evaluation import scaling_law
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.files import write_json

FLOPS = np.geomspace(1e12, 1e15, 7)


def law(flops, irreducible=1.7, scale=2e3, exponent=0.3):
    return irreducible + scale / flops**exponent


@pytest.mark.parametrize("exponent, scale", [(0.05, 5.0), (0.3, 2e3), (0.8, 1e10)])
def test_a_known_law_is_found(exponent, scale):
    found = scaling_law.fit(FLOPS, law(FLOPS, scale=scale, exponent=exponent))
    assert found.irreducible == pytest.approx(1.7, rel=1e-3)
    assert found.exponent == pytest.approx(exponent, rel=1e-3)
    assert found.scale * found.unit**exponent == pytest.approx(scale, rel=2e-2)
    assert found(1e18) == pytest.approx(law(1e18, scale=scale, exponent=exponent), rel=1e-4)


def test_one_bad_run_bends_it_little():
    loss = law(FLOPS)
    loss[3] *= 1.5  # diverged
    squares = np.polyfit(np.log(FLOPS), np.log(loss), 1)
    found = scaling_law.fit(FLOPS, loss)
    assert found(1e17) == pytest.approx(law(1e17), rel=0.02)
    assert np.exp(np.polyval(squares, np.log(1e17))) != pytest.approx(law(1e17), rel=0.02)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, held, trials = np.random.default_rng(0), 0, 12
    for trial in range(trials):
        loss = law(FLOPS) * np.exp(rng.normal(0, 0.003, len(FLOPS)))
        found = scaling_law.fit(FLOPS, loss)
        laws = scaling_law.resample(found, FLOPS, loss, resamples=25, seed=trial)
        low, high = scaling_law.interval(float(one(1e16)) for one in laws)
        held += low <= law(1e16) <= high
    assert held / trials >= 0.8


def test_three_amounts_of_compute_are_too_few():
    with pytest.raises(UserError, match="3 amounts of compute"):
        scaling_law.fit(FLOPS[:3], law(FLOPS[:3]))


def test_flops_are_summed_over_windows_of_any_length():
    log = [
        {"step": 4, "time/flops_per_second": 10.0, "time/seconds_per_step": 2.0},
        {"step": 4, "validation/ndcg@10": 0.5},
        {"step": 10, "time/flops_per_second": 30.0, "time/seconds_per_step": 1.0},
    ]
    assert scaling_law.total_flops(log) == 4 * 20 + 6 * 30


def make_run(directory, flops, **sft):
    steps = {
        "data": {"data": {"seed": 0}},
        "sft": {"model": str(flops), "sft": {"steps": 5, "learning_rate": 1 / flops, **sft}},
        "validation": {"evaluation": {"users": 3}},
    }
    for name, config in steps.items():
        (directory / name).mkdir(parents=True)
        if name == "validation":
            point = {"parameters": 1000, "flops": flops, "loss": law(flops), "targets": 3}
            write_json(directory / name / scaling_law.POINT, point)
        step_records.write(directory / name, config)
    return directory


def test_a_study_of_runs(tmp_path):
    runs = [make_run(tmp_path / f"run{i}", flops) for i, flops in enumerate(FLOPS)]
    text = scaling_law.study(runs[::-1], predict=[1e18], resamples=5, seed=0, out=tmp_path / "out")
    assert text.index("run0") < text.index("run6")  # by compute
    assert "alpha 0.3 " in text
    found = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert found["predictions"][0]["loss"] == pytest.approx(law(1e18), rel=1e-4)
    assert (tmp_path / "out" / "scaling.svg").read_text().count("run") >= len(runs)
    other = make_run(tmp_path / "other", 1e16, steps=6)
    with pytest.raises(UserError, match="other: the config of step sft is not that of"):
        scaling_law.read([*runs, other])


def test_a_compiled_step_gives_time_memory_and_loss(tmp_path):
    step = {
        "flops": 5e12, "flops_repeated": 1e12, "peak": 2**31,
        "seconds": {"compute": 0.5, "memory": 0.9, "network": 0.1},
    }  # fmt: skip
    report = {"topology": "v5e:2x4", "slices": 1, "mesh": {"data": 2, "fsdp": 4, "tensor": 1}}
    file = tmp_path / "7b.json"
    file.write_text(json.dumps(report | {"steps": {"sft": step}}))
    found = scaling_law.read_compiled(file, 2000, scaling_law.fit(FLOPS, law(FLOPS)))
    assert found["seconds"] == 0.9 and found["hours"] == 0.5 and found["hbm"] == 2**31
    assert found["flops"] == 4e12 * 8 * 2000
    assert found["loss"] == pytest.approx(law(found["flops"]), rel=1e-4)
    file.write_text(json.dumps(report | {"steps": {"sft": {"flops": 1.0, "fits": False}}}))
    for path, problem in ((file, "no step sft that fits"), (tmp_path / "none", "No such file")):
        with pytest.raises(UserError, match=problem):
            scaling_law.read_compiled(path, 2000, scaling_law.fit(FLOPS, law(FLOPS)))


def test_compute_is_a_positive_number():
    assert scaling_law.parse_flops(["1e15", "3"]) == [1e15, 3.0]
    for text in ("many", "-1", "nan", "inf"):
        with pytest.raises(UserError, match="--predict: .*FLOPs such as 1e18"):
            scaling_law.parse_flops([text])
