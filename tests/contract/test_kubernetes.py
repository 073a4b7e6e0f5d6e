"""The manifests agree with themselves and with torchrun's options; no cluster is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).parents[2]


def test_the_training_job_is_one_that_torchrun_understands() -> None:
    service, job = yaml.safe_load_all((ROOT / "deploy/k8s/train.yaml").read_text())
    spec, name = job["spec"], job["metadata"]["name"]
    pod: dict[str, Any] = spec["template"]["spec"]
    (container,) = pod["containers"]
    program, *options = container["command"]
    assert program == "torchrun"
    # Kubernetes puts the pod's index in for this name.
    arguments = get_args_parser().parse_args([option.replace("$(JOB_COMPLETION_INDEX)", "1") for option in options])
    assert (arguments.training_script, arguments.training_script_args) == ("pipeline.stages.train", ["cnn"])
    assert arguments.module
    assert spec["completionMode"] == "Indexed"
    assert int(arguments.nnodes) == spec["completions"] == spec["parallelism"]
    assert (arguments.node_rank, int(arguments.max_restarts)) == (1, 0)
    # A pod of an indexed job is called by the job's name and its index, below the service that the template names.
    assert arguments.master_addr == f"{name}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["ports"][0]["port"] == arguments.master_port == container["ports"][0]["containerPort"]
    mounted = {volume["name"] for volume in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert container["env"][0]["value"] == container["resources"]["requests"]["cpu"]
