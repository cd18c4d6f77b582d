"""What deploys a cluster: the image's install script is run, manifests are held against the published schemas."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "cluster" / "deploy"
KUBERNETES = "1.30"  # the oldest one still in wide use: newer ones only add fields

jsonschema = pytest.importorskip("jsonschema")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="a dependency of tests")
SCHEMA = json.loads((ROOT / "tests" / "data" / "kuberay-v1.schema.json").read_text())


def manifests() -> list[dict[str, Any]]:
    return [value for path in sorted(DEPLOY.glob("*.yaml")) for value in yaml.safe_load_all(path.read_text())]


def cluster_specs() -> dict[str, dict[str, Any]]:
    by_kind = {value["kind"]: value["spec"] for value in manifests()}
    return {"RayCluster": by_kind["RayCluster"], "RayJob": by_kind["RayJob"]["rayClusterSpec"]}


def groups(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield spec["headGroupSpec"]
    yield from spec["workerGroupSpecs"]


@pytest.mark.slow
def test_the_lines_that_make_the_image_make_an_environment(tmp_path: Path) -> None:
    """Every RUN line of the Dockerfile, with its paths moved; what is installed here already is not fetched again."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.startswith("RUN ")]
    assert len(lines) == 1
    command = re.sub(r"^RUN (--mount=\S+ )*", "", lines[0])
    source, python = tmp_path / "src", tmp_path / "venv" / "bin" / "python"
    _copy_of_the_checkout(source)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    (own,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (own / "here.pth").write_text("".join(f"{folder}\n" for folder in _installed_folders()))
    command = command.replace("/src", str(source)).replace("/usr/local/bin/python", str(python))
    command = re.sub(r" inlay$", f" {_account()}", command)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^inlay \d+\.\d+\.\d+\nray 2\.\d+\.\d+ torch ", done.stdout, re.MULTILINE), done.stdout
    assert (own / "inlay" / "cluster" / "runtime.py").is_file()
    where = [str(python), "-c", "import inlay; print(inlay.__file__)"]
    assert subprocess.run(where, capture_output=True, text=True, cwd="/").stdout.startswith(str(own))


def _copy_of_the_checkout(target: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().splitlines():
        path = ROOT / name
        if path.is_symlink() or path.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name, follow_symlinks=False)


def _installed_folders() -> list[str]:
    return [path for path in sys.path if "site-packages" in path and Path(path).is_dir()] or site.getsitepackages()


def _account() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


@pytest.mark.parametrize("script", ["install.sh", "slurm.sh"])
def test_scripts_are_valid_shell(script: str) -> None:
    done = subprocess.run(["bash", "-n", str(DEPLOY / script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


SLURM = {
    "srun": "exec sleep 60",
    "ray": "echo '[{}]'",
    "hostname": "echo 127.0.0.1",
    "scontrol": 'echo "$@" >> "$TOLD"',
    "inlay": 'exit "$CODE"',
}
"""What the script calls, on a machine that has none of it."""


@pytest.mark.parametrize(
    ("code", "restarts", "queued", "ends"),
    [(0, 0, False, 0), (4, 0, False, 4), (2, 0, False, 2), (1, 0, True, 0), (137, 2, True, 0), (1, 5, False, 1)],
)
def test_slurm_queues_a_search_again_whose_job_server_was_lost(
    tmp_path: Path, code: int, restarts: int, queued: bool, ends: int
) -> None:
    for name, line in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    told = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "a", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "1"}
    told |= {"SLURM_RESTART_COUNT": str(restarts), "CODE": str(code), "TOLD": str(tmp_path / "told")}
    done = subprocess.run(
        ["bash", str(DEPLOY / "slurm.sh"), "job.yaml"],
        env={"PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path), **told},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == ends, done.stderr
    assert (tmp_path / "told").exists() == queued
    if queued:
        assert (tmp_path / "told").read_text() == "requeue 7\n"
        assert "the job server was lost" in done.stderr


def test_manifests_hold_against_the_published_schemas() -> None:
    checked = []
    for value in manifests():
        checked.append(value["kind"])
        if value["apiVersion"] == "ray.io/v1":
            jsonschema.validate(value, SCHEMA)
        else:
            kubernetes_validate.validate(value, KUBERNETES, strict=True)
    assert sorted(checked) == ["NetworkPolicy", "PersistentVolumeClaim", "RayCluster", "RayJob"]
    for spec in cluster_specs().values():
        for group in groups(spec):
            kubernetes_validate.validate(_pod(group), KUBERNETES, strict=True)


def test_the_schemas_refuse_what_is_wrong() -> None:
    value = next(value for value in manifests() if value["kind"] == "RayCluster")
    for edit in (
        lambda spec: spec.update(authOption={"mode": "token"}),
        lambda spec: spec["authOptions"].update(mode="tokens"),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["workerGroupSpecs"][0].update(replica=1),
    ):
        wrong = copy.deepcopy(value)
        edit(wrong["spec"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)
    pod = _pod(value["spec"]["headGroupSpec"])
    pod["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_the_guides_line_gives_a_manifest_to_kueue(name: str) -> None:
    """What Kueue asks of RayJobs and RayClusters: its label, no autoscaling, a cluster that goes away."""
    document = (ROOT / "docs" / "cluster.md").read_text()
    (line,) = re.findall(r"^\$ (sed -e .*?) \| kubectl create -f -$", document, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        ["bash", "-c", line.replace("rayjob.yaml", name)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    value = yaml.safe_load(done.stdout)
    jsonschema.validate(value, SCHEMA)
    labels = {"kueue.x-k8s.io/queue-name": "searches", "kueue.x-k8s.io/priority-class": "nightly"}
    assert value["metadata"]["labels"] == labels
    spec = value["spec"] if name == "raycluster.yaml" else value["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in spec
    sizes = [[group[n] for n in ("minReplicas", "replicas", "maxReplicas")] for group in spec["workerGroupSpecs"]]
    assert sizes == [[8, 8, 8], [0, 0, 8]]
    if name == "rayjob.yaml":
        assert value["spec"]["shutdownAfterJobFinishes"] is True
    given = yaml.safe_load((DEPLOY / name).read_text())
    own = given["spec"] if name == "raycluster.yaml" else given["spec"]["rayClusterSpec"]
    changed = {"enableInTreeAutoscaling", "autoscalerOptions", "workerGroupSpecs"}
    assert {k: v for k, v in spec.items() if k not in changed} == {k: v for k, v in own.items() if k not in changed}


def test_both_clusters_are_one_and_the_same() -> None:
    specs = cluster_specs()
    assert specs["RayCluster"] == specs["RayJob"]


def test_the_token_is_on_and_workers_may_be_lost() -> None:
    import ray

    from inlay.cluster.services import job_resources

    spec = cluster_specs()["RayCluster"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == ray.__version__
    head, cpu, gpu = groups(spec)
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert json.loads(json.loads(head["rayStartParams"]["resources"])) == job_resources(4)
    refused = head["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert len(refused["nodeSelectorTerms"]) == 1
    for worker in (cpu, gpu):
        assert any("spot" in toleration["key"] for toleration in worker["template"]["spec"]["tolerations"])
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in cpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    for group in (head, cpu, gpu):
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
        assert "env" not in group["template"]["spec"]["containers"][0] or not any(
            "TOKEN" in variable["name"] for variable in group["template"]["spec"]["containers"][0]["env"]
        )


def test_every_pod_of_both_clusters_is_behind_the_network_policy() -> None:
    (policy,) = (value["spec"] for value in manifests() if value["kind"] == "NetworkPolicy")
    selected = policy["podSelector"]["matchLabels"].items()
    for kind, spec in cluster_specs().items():
        for group in groups(spec):
            labels = group["template"].get("metadata", {}).get("labels", {})
            assert selected <= labels.items(), f"a pod of the {kind} is reached by everybody"
    nodes, clients = policy["ingress"]
    assert [peer["podSelector"]["matchLabels"].items() for peer in nodes["from"]] == [selected]
    (job,) = (value["spec"] for value in manifests() if value["kind"] == "RayJob")
    submitter = job["submitterPodTemplate"]["metadata"]["labels"]
    assert clients["from"][0]["podSelector"]["matchLabels"].items() <= submitter.items(), "it must reach the job server"
    template = {"apiVersion": "v1", "kind": "Pod", **job["submitterPodTemplate"]}
    template["metadata"] = {"name": "x", **template["metadata"]}
    kubernetes_validate.validate(template, KUBERNETES, strict=True)


def _pod(group: dict[str, Any]) -> dict[str, Any]:
    template = copy.deepcopy(group["template"])
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template.get("metadata", {})}} | {
        "spec": template["spec"]
    }
