"""Training under real DVC: killed and taken up again, by two processes, and as trials of a study."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.e2e.project import Project, environment
from visionloop.config import load_params
from visionloop.files import sha256_file

MODEL = Path("models/cnn/model.pt")
CHECKPOINT = Path("models/cnn/resume/checkpoint.bin")
TRAIN = (sys.executable, "-m", "pipeline.stages.train", "cnn")  # as DVC does, which takes seconds to find that out


def losses(project: Project) -> list[float]:
    """Of val, by epoch."""
    with (project.root / "reports/train/cnn/plots/metrics/val_loss.tsv").open() as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file, delimiter="\t")]


def kill_after_an_epoch(project: Project) -> None:
    """`dvc repro train@cnn`, ended with SIGKILL, with the training in it, once there is a checkpoint."""
    process = subprocess.Popen(
        ["dvc", "repro", "train@cnn"],
        cwd=project.root,
        env=environment(PYTHONPATH=f"{project.root / 'src'}{os.pathsep}{project.root}"),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not (project.root / CHECKPOINT).exists():
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_repro_goes_on_to_the_bits_of_one_run(own_road: Project) -> None:
    own_road.set_param(r"^  epochs: .*$", "  epochs: 6")
    kill_after_an_epoch(own_road)
    assert not (own_road.root / MODEL).exists(), "it was not killed in the middle"
    said = own_road.run("dvc", "repro", "train@cnn").stdout
    assert "Training goes on after epoch " in said and "cnn epoch 6/6" in said
    assert not (own_road.root / CHECKPOINT).exists()
    resumed, curve = sha256_file(own_road.root / MODEL), losses(own_road)
    assert "goes on" not in own_road.run(*TRAIN).stdout
    assert sha256_file(own_road.root / MODEL) == resumed
    assert losses(own_road) == curve and len(curve) == 6


def test_two_processes_train_the_network_that_one_does(own_road: Project) -> None:
    """Two steps of plain SGD: more of them blow up the rounding of other sums, in one process too."""
    for pattern, value in {"epochs": "1", "batch_size": "640", "optimizer": "sgd"}.items():
        own_road.set_param(rf"^  {pattern}: .*$", f"  {pattern}: {value}")
    own_road.run("dvc", "repro", "-s", "train@cnn")
    alone, curve = torch.load(own_road.root / MODEL, weights_only=True), losses(own_road)
    own_road.set_param(r"^  processes: .*$", "  processes: 2")
    assert "train@cnn" not in json.loads(own_road.run("dvc", "status", "dvc.yaml", "--json").stdout), "it changes no network"
    own_road.run(*TRAIN)
    together, other = torch.load(own_road.root / MODEL, weights_only=True), losses(own_road)
    assert other == pytest.approx(curve, rel=1e-3)  # it is written with four digits
    assert all(torch.allclose(together[name], value, rtol=1e-4, atol=1e-4) for name, value in alone.items())
    assert not all(torch.equal(together[name], value) for name, value in alone.items()), "it was one process again"


def test_a_study_of_two_workers_ends_goes_no_further_and_writes_its_best_values(own_road: Project) -> None:
    own_road.set_param(r"^  trials: 30 .*$", "  trials: 4")
    own_road.set_param(r"^  epochs: null .*$", "  epochs: 1")
    before, untouched = (own_road.root / "params.yaml").read_text(), load_params(own_road.root / "params.yaml")
    refused = own_road.cli("tune", "--trial", "99", code=1)
    assert refused.stderr == "--trial names the trial whose values --apply writes; add --apply.\n"
    first = own_road.cli("tune", "--workers", "2", "--apply", "--trial", "99", code=1)
    assert "0 of 4 trials are done, tpe, 2 workers." in first.stdout
    assert first.stderr.splitlines()[-1].startswith("The study has no complete trial 99; the best are ")
    assert (own_road.root / "params.yaml").read_text() == before
    report = json.loads((own_road.root / "reports/tune.json").read_text())
    assert report["complete"] + report["pruned"] == 4
    page = (own_road.root / "reports/tune.html").read_text()
    assert "train.cnn.learning_rate" in page
    said = own_road.cli("tune", "--apply").stdout
    assert "4 of 4 trials are done" in said
    params, best = load_params(own_road.root / "params.yaml"), report["best"]
    assert params.train.cnn.learning_rate == pytest.approx(best["train.cnn.learning_rate"], rel=1e-3)
    assert params.train.of("cnn").weight_decay == pytest.approx(best["train.weight_decay"], rel=1e-3)
    assert params.train.cnn.options["width"] == best["train.cnn.options.width"]
    assert params.augment.rotation_degrees == best["augment.rotation_degrees"]
    assert (params.train.vit, params.split) == (untouched.train.vit, untouched.split)


def test_a_recipe_is_listed_refused_and_applied(own_road: Project) -> None:
    listed = own_road.cli("recipe").stdout
    names = {path.name.split(".")[0] for path in (own_road.root / "recipes").glob("*.yaml")}
    assert {line.split()[0] for line in listed.splitlines()[:-1]} == names
    own_road.set_param(r"^  epochs: .*$", "  epochs: 3")
    refused = own_road.cli("recipe", "digits", code=2)
    assert refused.stderr.startswith("params.yaml has changes that git has not; commit them")
    unknown = own_road.cli("recipe", "cifar10-sped", code=1)
    assert unknown.stderr == "There is no recipe 'cifar10-sped' in recipes; did you mean cifar10-speed?\n"
    said = own_road.cli("recipe", "cifar10-vit", "--small", "--force").stdout
    assert said.startswith(
        "params.yaml is the recipe cifar10-vit, small variant, now.\nThe params.yaml of before is kept as var/"
    )
    assert "Source   " in said
    assert load_params(own_road.root / "params.yaml").collect.options == {"file": "cifar10-jpeg.tar.gz"}
    # What it needs is not there: said at once, and nothing is lost.
    missing = own_road.run("dvc", "repro", "collect", code=None)
    assert missing.returncode != 0 and "cifar10-jpeg.tar.gz" in missing.stdout + missing.stderr
