"""One run in several processes: their ids, and the values of the host that they exchange.

Every process runs the same program and takes part in every computation; one of them, the main one,
writes files. They tell each other host values through JAX's coordination service and not through
devices, so that one may wait for another as long as it takes.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging
from jax._src import clusters, distributed  # neither has a public name

from mmsrec_jax.runtime import failures
from mmsrec_jax.runtime.errors import UserError, of_os_error

_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_MISSED_SECONDS = 60  # after which a process that says nothing is given up
_SAID_AFTER = 20.0  # seconds of waiting for others before a line says so
_PATIENCE_MS = 7 * 24 * 3600 * 1000

JOIN_SECONDS = 300
"""How long `initialize` waits for all processes."""

_exchanges = 0


def initialize(join_seconds: int = JOIN_SECONDS) -> None:
    """Joins the other processes of this run, if there are any; call it before anything else.

    When they have not all come after `join_seconds`, one line says so and this process ends with
    status 2 (JAX would abort it with a list of addresses).

    `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`
    say so explicitly. Without the last two SLURM, Open MPI, TPU machines and Kubernetes are asked,
    as `jax.distributed.initialize` does.

    Raises:
      UserError: one of the last two variables is set and not all three are, or it is no number.
    """
    address, total, index = (os.environ.get(name, "") for name in _EXPLICIT)
    if total or index:
        missing = [name for name in _EXPLICIT if not os.environ.get(name)]
        if missing:
            raise UserError(f"{missing[0]} is not set; set all of {', '.join(_EXPLICIT)}")
        if not (total.isdigit() and index.isdigit() and int(index) < int(total)):
            raise UserError(
                f"JAX_NUM_PROCESSES={total} and JAX_PROCESS_ID={index}: give numbers, ids from 0"
            )
        told: tuple[str | None, int | None, int | None] = (address, int(total), int(index))
    elif _cluster_size() > 1:
        told = (None, None, None)  # the cluster is asked
    else:
        return
    with _joining(join_seconds):
        jax.distributed.initialize(
            *told,
            heartbeat_timeout_seconds=_MISSED_SECONDS,
            initialization_timeout=join_seconds + _MISSED_SECONDS,  # ours comes first
        )
    if count() > 1:
        failures.watch()


@contextlib.contextmanager
def _joining(seconds: float) -> Iterator[None]:
    """Ends this process with one line when the block, which JAX waits in, takes longer."""
    joined = threading.Event()

    def wait() -> None:
        if joined.wait(min(_SAID_AFTER, seconds)):
            return
        others = f"{count()} processes at {distributed.global_state.coordinator_address}"
        logging.warning("waits for all of %s, up to %g s", others, seconds)
        if not joined.wait(max(0.0, seconds - _SAID_AFTER)):
            logging.error(
                "not all of %s came within %g s; look at what the others say, start all of them, "
                "or give them more time with --join_seconds",
                others, seconds,
            )  # fmt: skip
            failures.leave(2)

    threading.Thread(target=wait, name="joining", daemon=True).start()
    try:
        yield
    finally:
        joined.set()


def _cluster_size() -> int:
    """Processes of the cluster that this one was started in, 1 without one."""
    kinds = clusters.ClusterEnv._cluster_types
    found = (kind for kind in kinds if not kind.opt_in_only_method and kind.is_env_present())
    kind = next(found, None)
    return 1 if kind is None else kind.get_process_count()


def index() -> int:
    """The number of this process among all, from 0."""
    return distributed.global_state.process_id  # which starts no devices


def is_main() -> bool:
    """Whether this process writes files and log lines."""
    return index() == 0


def count() -> int:
    """How many processes there are."""
    return distributed.global_state.num_processes


def gather(value: Any) -> list[Any]:
    """The `value` of every process, in their order; anything JSON can hold. All have to call it."""
    global _exchanges
    if count() == 1:
        return [value]
    _exchanges += 1
    client, folder = distributed.global_state.client, f"mmsrec_jax/{_exchanges}"
    assert client is not None, "count() > 1 only after jax.distributed.initialize"
    client.key_value_set(f"{folder}/{distributed.global_state.process_id}", json.dumps(value))
    client.wait_at_barrier(folder, _PATIENCE_MS)
    if is_main():  # all have read what the exchange before this one was about
        client.key_value_delete(f"mmsrec_jax/{_exchanges - 1}/")
    found = client.key_value_dir_get(f"{folder}/")
    by_process = {int(key.rpartition("/")[2]): text for key, text in found}
    return [json.loads(by_process[process]) for process in range(count())]


def barrier() -> None:
    """Waits until every process is here."""
    gather(None)


def from_main(make: Callable[[], Any]) -> Any:
    """What `make()` returns in the main process, the only one to call it; JSON, for all of them.

    Raises:
      UserError: the main one's, in every process; what its operating system refused is one too.
    """
    if count() == 1:
        return make()
    told = None
    if is_main():
        try:
            told = {"value": make()}
        except UserError as error:
            told = {"error": str(error)}
        except OSError as error:
            told = {"error": str(of_os_error(error))}
    told = gather(told)[0]
    if "error" in told:
        raise UserError(told["error"])
    return told["value"]
