"""The steps of `plan` as pipelines of Apache Beam, of the extra [beam]."""

import contextlib
import functools
import importlib
import importlib.util
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mmsrec_jax.data.partitioned import core, items, spills, users
from mmsrec_jax.data.partitioned.core import State
from mmsrec_jax.data.partitioned.plan import Plan
from mmsrec_jax.runtime.buckets.objects import is_url
from mmsrec_jax.runtime.errors import UserError, first_line, of_os_error

if TYPE_CHECKING:  # of the extra [beam]
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

ROUNDS = 8  # of the core in one pipeline: on a cluster each one takes minutes to start
_LOCAL = ("", "direct", "directrunner", "fnapi", "fnapirunner")  # they work in this process
_WITHOUT_DISK = "apache_beam.runners.dataflow."  # its workers see buckets alone
_OF_DATAFLOW = "apache_beam.runners.dataflow.internal.apiclient"  # needs the extra [gcp] of Beam
_WITHOUT_RUN = ("no_wait_until_finish", "template_location", "dry_run")
_PROBLEM, _SPILLS, _STATE = "problem", "spills", "state"


def require() -> None:
    """Raises UserError where the package is missing."""
    if importlib.util.find_spec("apache_beam") is None:
        raise UserError(
            "config.data.beam_options: the package apache_beam is not installed; run pip install "
            "-e '.[beam]', or leave it out"
        )


class Runner:
    """Runs pipelines.

    Args:
      given: options of Beam with commas between, as in "runner=DataflowRunner,project=lab".
      root: of the data, as the user names it.

    Raises:
      UserError: Beam has no such option or runner, or refuses a value; with an option nothing would
        have been read when the pipeline ends; the runner runs elsewhere, and nothing says where its
        workers leave files to each other; its workers see no disk, and the data or these files are
        not in a bucket; or packages of the runner are missing.

    Attributes:
      folder: that `temp_location` names for files of the workers; empty where there is none.
    """

    def __init__(self, given: str, root: str):
        require()
        from apache_beam.options.pipeline_options import (
            GoogleCloudOptions,
            PipelineOptions,
            StandardOptions,
        )

        names = [option.strip().removeprefix("--") for option in given.split(",")]
        flags = [f"--{name}" for name in names if name]
        _check(given, flags)
        try:
            self._options = PipelineOptions(flags)
            self.folder: str = self._options.view_as(GoogleCloudOptions).temp_location or ""
            name = self._options.view_as(StandardOptions).runner or ""
            self._runner = _runner(name)
        except (ValueError, ImportError, AttributeError) as error:
            raise UserError(
                f"config.data.beam_options={given!r}: Beam refuses it ({first_line(error)}); give "
                "its options with commas between, such as runner=DirectRunner"
            ) from error
        _check_waits(given, self._options)
        if not _is_local(name) and not self.folder:
            raise UserError(
                f"config.data.beam_options={given!r}: add temp_location=FOLDER, one that all "
                f"workers of {name} see, such as gs://BUCKET/FOLDER"
            )
        if not type(self._runner).__module__.startswith(_WITHOUT_DISK):
            return
        for what, folder in (("config.data.root", root), ("temp_location", self.folder)):
            if not is_url(folder):
                raise UserError(
                    f"config.data.beam_options={given!r}: workers of {name} do not see "
                    f"{what}={folder}; copy it into a bucket and name that, gs://BUCKET/FOLDER"
                )
        try:
            importlib.import_module(_OF_DATAFLOW)
        except ImportError as error:
            raise UserError(
                f"config.data.beam_options={given!r}: packages of {name} are missing "
                f"({first_line(error)}); run pip install 'apache-beam[gcp]'"
            ) from error

    def run(self, plan: Plan, files: Sequence[str]) -> tuple[list[str], State]:
        """All steps of a plan. files: of interactions, in order, where every worker reads them.

        Returns:
          The names of the spills, and the state of the core at its end.

        Raises:
          UserError: what a step raises, or the runner.
        """
        state = self._run(plan, functools.partial(_begun, plan=plan, files=files))
        while state.goes_on:
            state = self._run(plan, functools.partial(_continued, plan=plan, state=state))
        return plan.record(_SPILLS)["names"], state

    def _run(self, plan: Plan, build: Callable[["beam.Pipeline"], None]) -> State:
        import apache_beam as beam

        for name in (_PROBLEM, _STATE):  # those of an earlier pipeline
            plan.remove(name)
        try:
            with beam.Pipeline(runner=self._runner, options=self._options) as pipeline:
                build(pipeline)
        except Exception as error:  # runners raise what they like
            raise UserError(_failure(plan.record(_PROBLEM).get("problem"), error)) from error
        if not (found := plan.record(_STATE)):
            raise UserError(
                "config.data.beam_options: the pipeline ended without its last step, as one does "
                "that is canceled; see what the runner logged, and start again"
            )
        return State(*found["state"])


def _failure(told: str | None, error: Exception) -> str:
    """told: by a step. It may have been done again since, so what the runner says belongs to it."""
    lines = str(error).strip().splitlines()
    if lines and lines[0].startswith("Traceback"):  # of a worker, whole
        said = first_line(RuntimeError(lines[-1]))
    else:
        said = first_line(error)
    if told is None:
        return f"config.data.beam_options: the pipeline failed ({said})"
    return told if told in str(error) else f"{told} (the runner: {said})"


def _check(given: str, flags: list[str]) -> None:
    """Raises UserError for an option that Beam would pass over, or for a value of a wrong type."""
    from apache_beam.options.pipeline_options import PipelineOptions

    unknown: list[str] = []
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # a page of usage, then what is wrong
            PipelineOptions(flags).get_all_options(
                add_extra_args_fn=lambda parser: unknown.extend(parser.parse_known_args(flags)[1])
            )
    except SystemExit as error:
        wrong = said.getvalue().strip().rpartition("error: ")[2]
        raise UserError(
            f"config.data.beam_options={given!r}: Beam refuses it ({wrong}); correct the value"
        ) from error
    if unknown:
        name = unknown[0].removeprefix("--").partition("=")[0]
        raise UserError(
            f"config.data.beam_options={given!r}: Beam has no option {name!r}; correct its name, "
            "or leave it out"
        )


def _check_waits(given: str, options: "PipelineOptions") -> None:
    """Raises UserError for an option with which a pipeline ends before its steps are done."""
    for name, value in options.get_all_options(drop_default=True).items():
        if value and name in _WITHOUT_RUN:
            raise UserError(
                f"config.data.beam_options={given!r}: with {name} nothing is read when the "
                "pipeline ends; leave it out"
            )


def _runner(name: str) -> Any:
    """DirectRunner tries another one first, which it downloads."""
    from apache_beam.runners.runner import create_runner

    return create_runner("FnApiRunner" if _is_local(name) else name)


def _is_local(name: str) -> bool:
    """By the names that Beam takes: in any case, and without "Runner" too."""
    return name.lower() in _LOCAL


def _begun(pipeline: "beam.Pipeline", plan: Plan, files: Sequence[str]) -> None:
    """Everything up to the first rounds of the core."""
    import apache_beam as beam
    from apache_beam.pvalue import AsList, AsSingleton

    names = _each(pipeline, "file", list(enumerate(files))) | "spill" >> beam.FlatMap(
        lambda file: _told(plan, _spilled, file)
    )
    cleaned = _each(pipeline, "part", range(plan.parts)) | "clean" >> beam.Map(
        lambda part, all: _told(plan, users.clean, all, part), AsList(names)
    )
    index = _each(pipeline, "index", [0]) | "index" >> beam.Map(
        lambda _, parts: _told(plan, items.index, parts), AsList(cleaned)
    )
    numbered = _each(pipeline, "number", range(plan.parts)) | "number" >> beam.Map(
        lambda part, name: _told(plan, items.number, name, part), AsSingleton(index)
    )
    begin = _each(pipeline, "begin", [0]) | "begin" >> beam.Map(_noted, plan, AsList(names))
    states = begin | "numbered" >> beam.Map(lambda state, _: state, AsList(numbered))
    _rounds(pipeline, plan, states)


def _continued(pipeline: "beam.Pipeline", plan: Plan, state: State) -> None:
    """More rounds of the core, after what the last pipeline leaves over is removed. Beam has no
    loops."""
    import apache_beam as beam
    from apache_beam.pvalue import AsList

    old = core.outdated(plan, range(max(state.round - ROUNDS, 1), state.round))
    removed = _each(pipeline, "old", old) | "remove" >> beam.Map(
        lambda name: _told(plan, Plan.remove, name)
    )
    begin = pipeline | "state" >> beam.Create([tuple(state)])
    _rounds(pipeline, plan, begin | "removed" >> beam.Map(lambda at, _: at, AsList(removed)))


def _rounds(
    pipeline: "beam.Pipeline", plan: Plan, states: "beam.PCollection[tuple[int, bool]]"
) -> None:
    """Rounds of the core after a state, and a note of the last one."""
    import apache_beam as beam
    from apache_beam.pvalue import AsList, AsSingleton

    for number in range(ROUNDS):
        parts = _each(pipeline, f"part {number}", range(plan.parts)) | f"drop {number}" >> beam.Map(
            lambda part, at: _told(plan, core.drop, State(*at), part), AsSingleton(states)
        )
        states = _each(pipeline, f"count {number}", [0]) | f"count {number}" >> beam.Map(
            lambda _, at, all: tuple(_told(plan, core.count, State(*at), all)),
            AsSingleton(states),
            AsList(parts),
        )
    states | "end" >> beam.Map(lambda at: plan.put_record(_STATE, {"state": list(at)}))


def _each(pipeline: "beam.Pipeline", name: str, elements: Iterable[Any]) -> "beam.PCollection[Any]":
    """What a step is done with, on any worker. A step never goes on with what an earlier one gave:
    what it waits for are side inputs, so that no runner fuses the two."""
    import apache_beam as beam

    created = pipeline | f"each {name}" >> beam.Create(list(elements))
    return created | f"spread {name}" >> beam.Reshuffle()


def _noted(_: int, plan: Plan, names: list[str]) -> tuple[int, ...]:
    plan.put_record(_SPILLS, {"names": sorted(names)})
    return tuple(core.BEGIN)


def _spilled(plan: Plan, file: tuple[int, str]) -> list[str]:
    return list(spills.write(plan, file))


def _told(plan: Plan, step: Callable[..., Any], *given: Any) -> Any:
    """What a step gives. Tells who started the pipeline what is wrong with the user's files or the
    disk of a worker: runners put errors into words of their own."""
    try:
        return step(plan, *given)
    except (UserError, OSError) as error:
        with contextlib.suppress(OSError):  # the folder may be what is wrong
            plan.put_record(_PROBLEM, {"problem": _problem(error)})
        raise


def _problem(error: UserError | OSError) -> str:
    missing = error.__cause__ if isinstance(error, UserError) else error
    if isinstance(missing, FileNotFoundError) and missing.filename:
        return (
            f"{missing.filename}: a worker of Beam does not see it; config.data.root and "
            "temp_location must be folders that all workers see, such as gs://BUCKET/FOLDER"
        )
    return str(error) if isinstance(error, UserError) else f"a worker of Beam: {of_os_error(error)}"
