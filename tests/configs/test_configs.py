"""Seeds of an experiment: all follow the one of the config, and each can be set by itself."""

import pytest
from ml_collections import ConfigDict

from configs import base, beauty, movielens, quickstart


def seeds(config: ConfigDict, path: str = "config") -> dict[str, int]:
    found = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            found |= seeds(value, f"{path}.{name}")
        elif name == "seed":
            found[f"{path}.seed"] = value
    return found


def test_parts_of_the_input_are_those_of_the_experiment_unless_set():
    config = base.get_config()
    config.input_shards = 4
    config.sft.input_shards = 8
    parts = [config[name].input_shards for name in ("warmup", "summarizer", "sft")]
    assert parts == [4, 4, 8]


@pytest.mark.parametrize("experiment", [base, beauty, movielens, quickstart])
def test_a_seed_set_by_itself_leaves_the_others_to_follow_the_experiment(experiment):
    config = experiment.get_config()
    config.seed = 3
    assert set(seeds(config).values()) == {3}
    config.data.seed = config.evaluation.seed = 0
    own = {"config.data.seed", "config.evaluation.seed"}
    assert seeds(config) == {name: 0 if name in own else 3 for name in seeds(config)}
