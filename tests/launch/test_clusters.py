"""The manifest against the structure of JobSet v1alpha2, batch/v1 Job and v1 Pod; the scripts; and
how processes find each other."""

import math
import re
import shlex
import subprocess
from pathlib import Path

import jax
import pytest
import yaml

from configs import beauty
from mmsrec_jax.runtime import processes
from mmsrec_jax.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "launch" / "clusters"

# Fields as published: kubernetes-sigs/jobset api/jobset/v1alpha2/jobset_types.go and the Kubernetes
# API reference. A trailing "!" is required; lists have the structure of one element.
CONTAINER = {
    "name!": str, "image": str, "command": [str], "args": [str], "workingDir": str,
    "env": [{"name!": str, "value": str, "valueFrom": dict}],
    "ports": [{"containerPort!": int, "name": str}],
    "resources": {"limits": {str: object}, "requests": {str: object}},
    "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool}],
    "securityContext": dict,
}  # fmt: skip
POD = {
    "restartPolicy": str, "terminationGracePeriodSeconds": int, "nodeSelector": {str: str},
    "securityContext": {"fsGroup": int, "runAsUser": int, "runAsNonRoot": bool},
    "tolerations": [dict], "serviceAccountName": str, "hostNetwork": bool, "dnsPolicy": str,
    "containers!": [CONTAINER],
    "volumes": [
        {
            "name!": str,
            "persistentVolumeClaim": {"claimName!": str, "readOnly": bool},
            "emptyDir": {"medium": str, "sizeLimit": str},
        }
    ],
}  # fmt: skip
METADATA = {"name": str, "namespace": str, "labels": {str: str}, "annotations": {str: str}}
JOB = {
    "parallelism": int, "completions": int, "completionMode": str, "backoffLimit": int,
    "activeDeadlineSeconds": int, "template!": {"metadata": METADATA, "spec!": POD},
}  # fmt: skip
JOBSET = {
    "apiVersion!": str,
    "kind!": str,
    "metadata!": METADATA,
    "spec!": {
        "replicatedJobs": [
            {
                "name!": str, "groupName": str, "replicas": int, "dependsOn": [dict],
                "template!": {"metadata": METADATA, "spec!": JOB},
            }
        ],
        "network": {
            "enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool,
        },
        "successPolicy": {"operator!": str, "targetReplicatedJobs": [str]},
        "failurePolicy": {"maxRestarts": int, "restartStrategy": str, "rules": [dict]},
        "suspend": bool, "managedBy": str, "ttlSecondsAfterFinished": int,
        "coordinator": {"replicatedJob!": str, "jobIndex": int, "podIndex": int},
        "volumeClaimPolicies": [dict],
    },
}  # fmt: skip


def problems(value, schema, path="") -> list[str]:
    """Fields that are unknown, missing or of another type."""
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path}: not a list"]
        found = (problems(item, schema[0], f"{path}[{i}]") for i, item in enumerate(value))
        return sum(found, [])
    if not isinstance(schema, dict):
        right = isinstance(value, schema) and not (schema is int and isinstance(value, bool))
        return [] if right else [f"{path}: {value!r} is no {schema.__name__}"]
    if not isinstance(value, dict):
        return [f"{path}: not a mapping"]
    if str in schema:
        return sum((problems(v, schema[str], f"{path}.{k}") for k, v in value.items()), [])
    known = {name.rstrip("!"): inner for name, inner in schema.items()}
    required = {name[:-1] for name in schema if name.endswith("!")}
    found = [f"{path}.{name}: missing" for name in sorted(required - value.keys())]
    found += [f"{path}.{name}: unknown" for name in sorted(value.keys() - known.keys())]
    for name in value.keys() & known.keys():
        found += problems(value[name], known[name], f"{path}.{name}")
    return found


@pytest.fixture
def manifest():
    return yaml.safe_load((CLUSTERS / "jobset.yaml").read_text())


def test_the_manifest_has_the_structure_of_a_jobset(manifest):
    assert problems(manifest, JOBSET) == []
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m["spec"]["failurePolicy"].update(maxRestarts="20"), "'20' is no int"),
        (lambda m: m["spec"].update(replicatedJob=[]), ".spec.replicatedJob: unknown"),
        (lambda m: m["spec"]["replicatedJobs"][0].pop("template"), "template: missing"),
    ],
)
def test_a_wrong_manifest_is_found_out(manifest, change, problem):
    change(manifest)
    assert any(problem in found for found in problems(manifest, JOBSET))


def test_the_manifest_agrees_with_itself(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    names = [manifest["metadata"]["name"], replicated["name"], container["name"]]
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in names)
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert (
        job["parallelism"] == job["completions"] == math.prod(map(int, topology.split("x"))) / chips
    )
    assert job["completionMode"] == "Indexed" and pod["restartPolicy"] in ("Never", "OnFailure")
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    runs_beauty(container["command"][-1], processes=job["parallelism"])


def test_the_slurm_script_is_a_script():
    text = (CLUSTERS / "train.sbatch").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    runs_beauty(text, processes=int(asked["nodes"]) * int(asked["ntasks-per-node"]))


def runs_beauty(script: str, processes: int):
    """The script is bash, and its command has a config and fields that exist."""
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    command = re.search(r"launch/train\.py.*?(?= &$| \|\|)", script, re.DOTALL | re.MULTILINE)[0]
    program, experiment, *flags = shlex.split(command.replace("\\\n", " "))
    assert (program, experiment) == ("launch/train.py", "--config=configs/beauty.py")
    fields = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    fields.pop("workdir")
    config = beauty.get_config().unlock()
    for name, value in fields.items():
        *path, last = name.removeprefix("config.").split(".")
        section = config
        for part in path:
            section = section[part]
        section[last] = type(section[last])(value)
    assert config.input_shards % processes == 0
    for name in ("summarizer", "sft"):
        assert config[name].batch_size % config[name].input_shards == 0


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[3-4]", "SLURM_LOCALID": "1"}
PLAIN = dict(zip(processes._EXPLICIT, ("10.0.0.1:1234", "2", "1"), strict=True))


@pytest.mark.parametrize(
    ("environment", "call"),
    [
        ({}, None),
        (SLURM | {"SLURM_NTASKS": "16", "SLURM_PROCID": "9"}, (None, None, None)),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),  # all GPUs stay visible
        (PLAIN, ("10.0.0.1:1234", 2, 1)),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}, None),
    ],
)
def test_processes_find_each_other(monkeypatch, environment, call):
    calls = []

    def initialize(*arguments, heartbeat_timeout_seconds, initialization_timeout):
        assert initialization_timeout > processes.JOIN_SECONDS > heartbeat_timeout_seconds
        calls.append(arguments)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.initialize()
    assert calls == ([] if call is None else [call])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID is not set"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "JAX_COORDINATOR_ADDRESS is not set"),
        ({"JAX_PROCESS_ID": "2"}, "ids from 0"),
        ({"JAX_NUM_PROCESSES": "two"}, "give numbers"),
    ],
)
def test_half_an_environment_is_refused(monkeypatch, change, problem):
    for name, value in (PLAIN | change).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=problem):
        processes.initialize()
