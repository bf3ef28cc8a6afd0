"""Sections about a run itself: its steps with time and devices, and its settings."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmsrec_jax.pages.document import bar, facts, note, table
from mmsrec_jax.pages.markup import Content, Html, clipped, element, joined
from mmsrec_jax.pages.run_folder import DONE, RunFolder, StepState
from mmsrec_jax.runtime.progress import clock

_LONGEST_VALUE = 120


def section(run: RunFolder, defaults: Mapping[str, Any]) -> Html:
    """Steps, then every setting that is not the package's default."""
    changed = [
        [element("code", f"config.{name}"), _value(default), _value(own)]
        for name, default, own in differences(defaults, run.config)
    ]
    return joined(
        _steps(run),
        element("h3", "Settings that are not the default"),
        table(
            f"{len(changed)} settings of the last start; docs/configuration.md explains each",
            ["setting", "default", "here"],
            changed,
            text_columns=3,
        )
        if changed
        else note("Every setting is the default."),
    )


def differences(first: Any, second: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, value in the first, value in the second) of every setting that differs between two
    nested configs; lists and tuples are alike."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in [*first, *(key for key in second if key not in first)]:
            name = f"{prefix}.{key}" if prefix else str(key)
            yield from differences(first.get(key), second.get(key), name)
    elif _plain(first) != _plain(second):
        yield prefix, first, second


def between_runs(configs: Mapping[str, Mapping[str, Any]]) -> Html:
    """The settings in which runs differ, a column a run. The runs come by name."""
    names = list(configs)
    first = configs[names[0]]
    found: dict[str, list[Any]] = {}
    for place, name in enumerate(names):
        for setting, base, own in differences(first, configs[name]):
            found.setdefault(setting, [base] * len(names))[place] = own
    if not found:
        return note("The runs have the same settings.")
    rows = [
        [element("code", f"config.{setting}"), *map(_value, values)]
        for setting, values in found.items()
    ]
    return table(
        f"{len(rows)} settings that differ", ["setting", *names], rows,
        text_columns=1 + len(names),
    )  # fmt: skip


def machine_facts(run: RunFolder) -> Html:
    """Versions and devices of the steps, one line for each that there was."""
    told = [start for step in run.steps for start in step.starts]
    if not run.done:
        return facts([])

    def each(*names: str) -> str:
        values = [" × ".join(str(one.get(name, "?")) for name in names) for one in told]
        return ", ".join(clipped(value, 60) for value in dict.fromkeys(values))

    return facts(
        [
            ("devices", each("devices", "device")),
            ("processes", each("processes")),
            ("time of all steps", [_time(run.steps), *_of_other_runs(run, _time)]),
            ("device hours", [_device_hours(run.steps), *_of_other_runs(run, _device_hours)]),
            ("mmsrec_jax", each("mmsrec_jax")),
            ("jax", each("jax")),
            ("python", each("python")),
            ("last step ended", _moment(max(step.ended for step in run.steps))),
        ]
    )


def _steps(run: RunFolder) -> Html:
    total = run.seconds or 1.0
    rows: list[list[Content]] = []
    for step in run.steps:
        kind = "tag yes" if step.state == DONE else "tag"
        share = None if step.seconds is None else bar(step.seconds / total)
        rows.append(
            [
                [step.name, share],
                [element("span", step.state, class_=kind), *_origin(step)],
                [_time([step]), *_starts(step)],
                _machines(step),
                _device_hours([step]),
                _moment(step.ended),
            ]
        )
    head = ["step", "state", "time", "devices", "device hours", "ended"]
    caption = (
        "Time is that of all starts of a step; of one that was killed up to the last file that it "
        "wrote"
    )
    return table(caption, head, rows, text_columns=2)


def _time(steps: Sequence[StepState]) -> str:
    """Of those that are done."""
    known = [step for step in steps if step.seconds is not None]
    if not known:
        return "–"
    told = clock(sum(step.seconds or 0.0 for step in known))
    return f"at least {told}" if any(len(step.starts) > 1 for step in known) else told


def _device_hours(steps: Sequence[StepState]) -> str:
    """Of those that are done."""
    known = [step for step in steps if step.device_hours is not None]
    if not known:
        return "–"
    told = f"{sum(step.device_hours or 0.0 for step in known):.3g}"
    return f"at least {told}" if any(len(step.starts) > 1 for step in known) else told


def _of_other_runs(run: RunFolder, measure: Callable[[Sequence[StepState]], str]) -> Iterator[Html]:
    """What the steps that other runs ran have of it."""
    taken = [step for step in run.steps if step.taken_from and step.seconds is not None]
    if taken:
        text = f"{measure(taken)} in other runs"
        yield element("span", text, class_="interval")


def _origin(step: StepState) -> Iterator[Html]:
    if step.taken_from:
        text = f"taken from {clipped(step.taken_from, 60)}"
        yield element("span", text, class_="interval")


def _starts(step: StepState) -> Iterator[Html]:
    if len(step.starts) > 1:
        yield element("span", f"in {len(step.starts)} starts", class_="interval")


def _machines(step: StepState) -> str:
    known = [f"{one['devices']} × {one.get('device')}" for one in step.starts]
    return ", ".join(dict.fromkeys(known)) or "–"


def _moment(iso: str) -> str:
    """As "2026-11-26 22:35 UTC": records have UTC."""
    return f"{iso[:16].replace('T', ' ')} UTC" if iso else "–"


def _value(value: Any) -> Html:
    text = value if isinstance(value, str) and value else json.dumps(value)
    return element("code", clipped(text, _LONGEST_VALUE))


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
