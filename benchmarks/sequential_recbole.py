"""RecBole's SASRec as a server for `benchmarks/sequential.py`, in a Python that has RecBole.

RecBole 1.2.1 needs numpy 1, JAX numpy 2, hence two environments. Calls are words, one a line of
standard input; answers are JSON, one a line of standard output.
"""

import itertools
import json
import os
import sys
import time

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed


class Side:
    """RecBole's own data, model, optimizer and evaluation, on the folder of atomic files."""

    def __init__(self, case: dict):
        torch.set_num_threads(case["threads"])
        init_seed(0, reproducibility=True)
        # As much as fits in memory: its default scores one user at a time.
        users = 512 * case["items"]
        config = Config(
            model="SASRec",
            dataset=case["name"],
            config_dict={
                "data_path": case["parent"],
                "checkpoint_dir": case["parent"],
                "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
                "user_inter_num_interval": "[5,inf)",
                "item_inter_num_interval": "[5,inf)",
                "eval_args": {
                    "split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full",
                },
                "loss_type": "CE", "train_neg_sample_args": None,
                "train_batch_size": case["batch"], "eval_batch_size": users,
                "MAX_ITEM_LIST_LENGTH": case["length"], "hidden_size": case["dim"],
                "inner_size": case["mlp_dim"], "n_layers": case["layers"],
                "n_heads": case["heads"], "hidden_dropout_prob": case["dropout"],
                "attn_dropout_prob": case["dropout"], "learning_rate": case["learning_rate"],
                "metrics": ["Recall", "NDCG"], "topk": [10], "valid_metric": "NDCG@10",
                "use_gpu": False, "show_progress": False, "state": "ERROR",
            },
        )  # fmt: skip
        dataset = create_dataset(config)
        self.training, _, self.test = data_preparation(config, dataset)
        self.model = SASRec(config, self.training.dataset)
        self.trainer = Trainer(config, self.model)
        self.batches = itertools.chain.from_iterable(itertools.repeat(self.training))

    def load(self) -> dict:
        counted = {"targets": self.training._dataset, "users": self.test._dataset}
        return {name: len(dataset) for name, dataset in counted.items()}

    def train(self, batches: int) -> dict:
        self.model.train()
        start, targets = time.perf_counter(), 0
        for batch in itertools.islice(self.batches, batches):
            self.trainer.optimizer.zero_grad()
            loss = self.model.calculate_loss(batch)
            loss.backward()
            self.trainer.optimizer.step()
            targets += len(batch)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "targets": targets, "loss": loss.item()}

    def evaluate(self) -> dict:
        start = time.perf_counter()
        self.trainer.evaluate(self.test, load_best_model=False)
        return {"seconds": time.perf_counter() - start}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # RecBole prints
    side = Side(json.loads(sys.argv[1]))
    for line in sys.stdin:
        name, *arguments = line.split()
        answers.write(json.dumps(getattr(side, name)(*map(int, arguments))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
