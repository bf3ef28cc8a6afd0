"""What every start checks and says: devices, mesh, precision, parameters."""

import difflib
import inspect
import logging as standard_logging
import math
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from absl import app, flags, logging
from flax import nnx

from mmsrec_jax.runtime import compiling, failures, processes
from mmsrec_jax.runtime.buckets import copies, objects
from mmsrec_jax.runtime.buckets import run as buckets
from mmsrec_jax.runtime.errors import UserError, first_line, of_disguised, of_os_error, root
from mmsrec_jax.runtime.printable import printable, printable_lines, shortened, strange_character

_ACCELERATOR_FILES = {
    "TPU": ("/dev/accel0", "/dev/vfio/0"),
    "GPU": ("/dev/nvidia0", "/dev/nvidiactl"),
}
_SAVES = "async_save"  # orbax's thread that waits until a checkpoint is on disk
_said = threading.Event()  # why this program ends
_LATE = "Event loop is closed"
_GRAINS_NOTE = "\n" + 20 * "-"  # what Grain adds to errors of its workers begins so
_PATHS = (
    "workdir",
    "out",
    "add",
    "urls",
    "images",
    "interactions",
    "items",
    "html",
    "local_dir",
)  # flags that name a file or folder
# Of these, what may lie in one where a program has --local_dir.
_IN_BUCKETS = ("workdir", "out", "images", "html")
_PACKAGE = Path(__file__).resolve().parents[1]
LOCAL_DIR = (
    "Folder of this machine for copies of what lies in buckets, by default one below that of "
    "temporary files."
)
"""What `--help` says of the flag --local_dir."""
_PACKAGES = {"TPU": 'pip install "jax[tpu]"', "GPU": 'pip install "jax[cuda13]"'}


def launch(main: Callable[[list[str]], int | None], *, required: Sequence[str] = ()) -> None:
    """Runs a program of `launch/`. What the user can put right is one line, and exit status 2.

    required: flags that have to be given.
    """
    plain_log_lines()
    _compile_without_triton()
    compiling.watch()
    flags.mark_flags_as_required(required)
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(_of_os_error(error))
    except Exception as error:
        if refused := of_disguised(error):
            _refuse(str(refused))
        if processes.count() == 1:
            raise
        traceback.print_exc()  # a fault of ours; the others would wait for this process
        failures.stop_all(first_line(error), 1)


def _refuse(problem: str) -> NoReturn:
    line = _say(problem)
    if processes.count() > 1:
        failures.stop_all(line, 2)
    sys.exit(2)


def _say(problem: str) -> str:
    """Logs what ends the program, the first time only; the line of it."""
    line = shortened(printable(problem.partition(_GRAINS_NOTE)[0]))
    flags.FLAGS.mark_as_parsed()  # else absl logs a line of its own before ours
    if not _said.is_set():
        _said.set()
        logging.error("%s", line)
    return line


def _of_os_error(error: OSError) -> str:
    """One line, with the run's folder where the error names no file."""
    line = str(of_os_error(error))
    if error.filename is None:
        given = (flags.FLAGS[name].value for name in _PATHS if name in flags.FLAGS)
        place = next((value for value in given if value), "")
        return f"{place}: {line}" if place else line
    return line


def _end_with_thread(failed: threading.ExceptHookArgs) -> None:
    """What the disk refuses to a thread, as that which writes for TensorBoard, ends the program:
    others would wait for the thread for ever."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)
        return
    if _said.is_set():
        return  # the main thread ends the program already
    _end_from_thread(_of_os_error(failed.exc_value))


def _end_from_thread(problem: str) -> NoReturn:
    line = _say(problem)
    if processes.count() > 1:
        failures.stop_all(line, 2)
    failures.leave(2)


class _FailedSaves(standard_logging.Handler):
    """A checkpoint that orbax's thread could not write ends the program. Orbax raises it at the
    next one; of several processes it first waits 20 minutes for those that do not know."""

    def emit(self, record: standard_logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if record.threadName != _SAVES or error is None or _said.is_set():
            return
        refused = of_disguised(error)
        reason = str(refused) if refused else f"{first_line(root(error))}; look at the disk"
        _end_from_thread(f"a checkpoint cannot be written: {reason}")


def _compile_without_triton() -> None:
    """On a GPU, products of matrices by cuBLAS alone, unless XLA_FLAGS says what the user wants.

    Else XLA compiles many Triton kernels to try for each of them: on an H100 a single one of a
    small float32 model took more than two minutes.
    """
    if any(Path(file).exists() for file in _ACCELERATOR_FILES["GPU"]):
        os.environ.setdefault("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=false")


def parse_flags(argv: list[str], known: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Flags as absl reads them; what is wrong with one becomes one clear line."""
    for arg, after in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = arg.partition("=")
        if name in ("--config", "-config"):
            _check_config_file(value if equals else after)
    try:
        rest = known(argv)
        _check_values(known, rest[1:])
        if "local_dir" in known and known["local_dir"].value:
            copies.use_local_dir(Path(known["local_dir"].value))
        return rest
    except flags.Error as error:
        problem = " ".join(str(error).split())
        if missing := re.findall(r"Flag (--\w+) must have a value other than None", problem):
            problem = f"{' and '.join(missing)} must be given; --help explains the flags"
        raise UserError(shortened(problem)) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(_no_such_field(argv, str(error))) from error


def _check_values(known: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Refuses values that no flag of ours can mean. An empty one is most often a variable of the
    shell that is not set: as a path it would be taken for the present folder."""
    if not all(argument.strip() for argument in arguments):
        raise UserError("an argument is empty: is a variable not set? Give a path")
    for name in known:
        flag = known[name]
        if not flag.present:
            continue
        found = flag.value if isinstance(flag.value, list) else [flag.value]
        for value in found or [""]:
            if isinstance(value, str) and not value.strip():
                raise UserError(
                    f"--{name}= is empty: is a variable not set? Give a value, or leave it out"
                )
            if isinstance(value, str) and (strange := strange_character(value)):
                raise UserError(f"--{name}={value!r}: has the character {strange!r}; leave it out")
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--{name}={value}: must be finite")
            if isinstance(value, str) and name in _PATHS and "://" in value:
                if name in _IN_BUCKETS and objects.is_url(value) and "local_dir" in known:
                    continue
                raise UserError(
                    f"--{name}={value}: a path of this machine is wanted; a workdir, data and "
                    "models may be in a bucket, gs://... (docs/clusters.md)"
                )


def _check_config_file(given: str) -> None:
    """The config library would report a missing file late and over many lines."""
    path = Path(given.partition(":")[0])
    if path.is_file():
        return
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
    remedy = f"did you mean {path.parent / near[0]}?" if near else "a path begins where you are"
    raise UserError(f"--config={given}: no file {path}; {remedy}")


def _no_such_field(argv: Sequence[str], problem: str) -> str:
    """One line about the flag that names a field which the config does not have."""
    problem = " ".join(problem.replace("\\n", " ").split())
    guess = re.search(r'Did you mean "(\w+)"', problem)
    names = re.findall(r"\w+", problem)
    given = [arg.partition("=")[0] for arg in argv if arg.startswith("--") and "." in arg]
    wrong = [flag for flag in given if names and names[0] in flag.split(".")]
    if not wrong:
        return f"the config has no such field: {problem}"
    nearest = f"; did you mean {guess[1]!r}?" if guess else ""
    return f"{wrong[0]}: the config has no such field{nearest}"


def no_arguments(argv: Sequence[str]) -> None:
    """For programs that take flags alone. Raises UserError when there is more."""
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}: flags begin with --; --help explains them"
        )


def plain_log_lines() -> None:
    """Log lines of the form `12:34:56 message` on standard error, from our code only."""
    handler = logging.get_absl_handler()
    handler.setFormatter(PlainFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_is_ours_or_warns)
    logging.get_absl_logger().addHandler(_FailedSaves())
    logging.set_verbosity(logging.INFO)
    # That PyTorch is absent, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    _silence_leftovers()


def _silence_leftovers() -> None:
    """Where orbax cannot read it leaves tasks and coroutines, whose complaints would follow what we
    say of the error over hundreds of lines."""
    standard_logging.getLogger("asyncio").disabled = True
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    others = sys.unraisablehook

    def on_unraisable(found: Any) -> None:
        if not (inspect.iscoroutine(found.object) or str(found.exc_value) == _LATE):
            others(found)

    sys.unraisablehook = on_unraisable
    threading.excepthook = _end_with_thread


def _is_ours_or_warns(record: standard_logging.LogRecord) -> bool:
    """Libraries that log through absl say more than a user wants to read, wherever they lie."""
    path = Path(record.pathname).resolve()
    if "orbax" in path.parts and record.levelno >= standard_logging.ERROR:
        _shorten(record)
    program = Path(sys.argv[0]).resolve().parent
    return (
        record.levelno >= standard_logging.WARNING
        or path.is_relative_to(_PACKAGE)
        or path.parent == program
    )


def _shorten(record: standard_logging.LogRecord) -> None:
    """Makes one line, a warning, of what orbax could not read, write or remove: it says that over
    hundreds. Most of it is raised too, and then ends in an error of ours; a checkpoint that cannot
    be removed, or metadata that cannot be written, is told here alone."""
    said = record.getMessage().strip().partition("\n")[0]
    if record.exc_info and (error := record.exc_info[1]):
        said = f"{said} ({first_line(error)})"
    record.msg, record.args = shortened(f"orbax: {said}"), ()
    record.exc_info = record.exc_text = record.stack_info = None
    record.levelno, record.levelname = standard_logging.WARNING, "WARNING"


class PlainFormatter(standard_logging.Formatter):
    """Marks warnings and errors, leaves information bare. Names of users and files reach no
    terminal with codes that it obeys."""

    def format(self, record: standard_logging.LogRecord) -> str:
        line = printable_lines(super().format(record))
        if record.levelno < standard_logging.WARNING:
            return line
        when, _, message = line.partition(" ")
        return f"{when} {record.levelname}: {message}"


def keep_compiled_programs(directory: Path) -> None:
    """Stores compiled programs, so that a resumed run does not compile again.

    `JAX_COMPILATION_CACHE_DIR`, when set, names another folder.

    Raises:
      UserError: that one is in a bucket, and the extra [gcs] is not installed: JAX would compile
        everything again and again.
    """
    if given := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        if objects.is_url(given):
            objects.require(f"JAX_COMPILATION_CACHE_DIR={given}")
    else:
        jax.config.update("jax_compilation_cache_dir", str(buckets.in_bucket(directory)))


def check_devices(*, allow_cpu: bool, root: Path = Path("/")) -> None:
    """Refuses to run on the CPU of a machine that has an accelerator.

    Args:
      allow_cpu: the user asked for the CPU.
      root: where device files are looked for.

    Raises:
      UserError: JAX came up on CPU beside a TPU or GPU; names the package to install.
    """
    asked_for_cpu = allow_cpu or os.environ.get("JAX_PLATFORMS", "") == "cpu"
    if jax.default_backend() != "cpu" or asked_for_cpu:
        return
    for kind, files in _ACCELERATOR_FILES.items():
        if any((root / name.lstrip("/")).exists() for name in files):
            raise UserError(
                f"this machine has a {kind} but JAX {jax.__version__} came up on the CPU: "
                f"{_PACKAGES[kind]}, or pass --allow_cpu to run on the CPU all the same"
            )


def report_devices(mesh: jax.sharding.Mesh) -> None:
    """Logs the devices and the mesh."""
    device = jax.devices()[0]
    logging.info(
        "devices: %d x %s (%s), %d process(es), jax %s",
        jax.device_count(), device.device_kind, device.platform, jax.process_count(),
        jax.__version__,
    )  # fmt: skip
    logging.info("mesh: %s", ", ".join(f"{name}={size}" for name, size in mesh.shape.items()))


def report_model(name: str, model: nnx.Module) -> None:
    """Logs parameter counts by part and their precisions."""
    counts: dict[str, int] = {}
    dtypes = set()
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        part = str(path[0])
        counts[part] = counts.get(part, 0) + int(np.prod(leaf.shape))
        dtypes.add(str(leaf.dtype))
    parts = ", ".join(f"{part} {count:,}" for part, count in sorted(counts.items()))
    logging.info(
        "%s: %s parameters (%s), stored as %s",
        name, f"{sum(counts.values()):,}", parts, "/".join(sorted(dtypes)),
    )  # fmt: skip
