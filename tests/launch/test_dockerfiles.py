"""The Dockerfiles: what they are built from, who runs in them, and who names their images."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from mmsrec_jax.runtime import startup

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"tpu": "TPU", "gpu": "GPU"}
# https://docs.docker.com/reference/dockerfile
INSTRUCTIONS = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL",
    "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip


def instructions(kind: str) -> list[tuple[str, str]]:
    """(instruction, arguments) in order, without comments and line breaks."""
    text = (ROOT / "docker" / f"{kind}.Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def arguments(kind: str, instruction: str) -> list[str]:
    return [text for name, text in instructions(kind) if name == instruction]


def image(kind: str) -> str:
    """The name that the comment at the top says to build under."""
    text = (ROOT / "docker" / f"{kind}.Dockerfile").read_text()
    command = shlex.split(re.search(r"^#\s+(docker build .*)$", text, re.MULTILINE)[1])
    assert command[command.index("--file") + 1] == f"docker/{kind}.Dockerfile"
    return command[command.index("--tag") + 1]


def wheels(kind: str) -> str:
    """The package of jax that the image installs, such as jax[tpu]."""
    (found,) = re.findall(r'"(jax\[\w+\])"', " ".join(arguments(kind, "RUN")))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_base_is_pinned_and_nobody_is_root(kind):
    found = instructions(kind)
    assert {name for name, _ in found} <= INSTRUCTIONS and found[0][0] == "FROM"
    (base,) = arguments(kind, "FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    (created,) = [run for run in arguments(kind, "RUN") if run.startswith("useradd ")]
    *flags, user = shlex.split(created)
    assert arguments(kind, "USER") == [user] and user != "root"
    assert [name for name, _ in found][-2:] == ["USER", "CMD"]  # root installs, the user runs
    manifest = yaml.safe_load((ROOT / "launch" / "clusters" / "jobset.yaml").read_text())
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["fsGroup"] == int(flags[flags.index("--uid") + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_jax_is_the_one_that_a_machine_without_it_is_told_to_install(kind):
    assert f'"{wheels(kind)}"' in startup._PACKAGES[KINDS[kind]]


def test_the_images_differ_in_their_jax_alone():
    tpu, gpu = (
        [(name, text.replace(wheels(kind), "jax")) for name, text in instructions(kind)]
        for kind in KINDS
    )
    assert tpu == gpu


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_copied_exists_and_reaches_the_builder(kind):
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    copied = [name for text in arguments(kind, "COPY") for name in shlex.split(text)[:-1]]
    assert set(copied) == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = {name.rstrip("*") for name in packages} | {"launch", "requirements.txt"}
    assert needed | {project["project"]["readme"]} <= set(copied)


def test_the_manifest_and_the_docs_name_the_image_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for kind in KINDS:
        assert image(kind) == f"REGISTRY/mmsrec_jax:{version}-{kind}"
    manifest = (ROOT / "launch" / "clusters" / "jobset.yaml").read_text()
    docs = (ROOT / "docs" / "clusters.md").read_text()
    named = re.compile(r"REGISTRY/mmsrec_jax:[\w.-]+")
    assert set(named.findall(manifest)) == {image("tpu")}
    assert set(named.findall(docs)) == {image(kind) for kind in KINDS}
    (workdir,) = arguments("tpu", "WORKDIR")
    assert f"workingDir: {workdir}\n" in manifest
