"""What would stop a training is said before any stage runs, by `doctor`, `run` and the first stage under DVC."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline import preflight
from pipeline.params_text import with_values
from pipeline.stages import PASSED
from visionloop.compression import targets
from visionloop.config import load_params
from visionloop.errors import ConfigError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml, two files of weights, and nothing collected."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    torch.save({"a": torch.zeros(2)}, tmp_path / "there.pt")
    (tmp_path / "damaged.pt").write_bytes(b"no weights")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return tmp_path


def change(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "params.yaml"
    path.write_text(with_values(path.read_text(), changes))


CASES: list[tuple[dict[str, Any], str]] = [
    ({"cnn": {"architecture": "resnet999", "options": {}}}, "There is no architecture 'resnet999'; the nearest are resnet"),
    ({"cnn": {"architecture": "small_vit", "options": {}}}, "which is of the family 'vit'; name it under train.vit."),
    ({"vit": {"options": {"patch": 3}}}, "16 x 16 pixels cannot be cut into patches of"),
    ({"vit": {"architecture": "vit_b_16", "options": {"patch": 4}}}, "vit_b_16 cannot be built"),
    (
        {"initial_scale": 0.5, "vit": {"architecture": "vit_b_16", "options": {}}},
        "initial_scale is 0.5, but vit_b_16 cannot take images of 8 x 8 pixels",
    ),
    ({"cnn": {"options": {"wdith": 4}}}, "did you mean 'width'?"),
    ({"cnn": {"weights": "absent.pt"}}, "absent.pt"),
    ({"cnn": {"weights": "there.pt", "weights_sha256": "0" * 64}}, "there.pt"),
    ({"cnn": {"weights": "damaged.pt"}}, "damaged.pt cannot be read as tensors"),
    ({"vit": {"weights": "there.pt"}}, "there.pt are not of small_vit: only 0% of its numbers"),
    ({"cnn": {"weights": "torchvision"}}, "torchvision has no weights for small_resnet"),
    ({"cnn": {"override": {"batch_size": 1798}}}, "train.batch_size of the cnn is 1,798, and the data set has 1,797 images"),
]


@pytest.mark.parametrize(("train", "sentence"), CASES)
def test_each_fault_is_named(train: dict[str, Any], sentence: str, folder: Path) -> None:
    assert list(preflight.problems(load_params())) == []
    change(folder, {"train": train})
    found = list(preflight.problems(load_params()))
    assert len(found) == 1 and sentence in found[0]


def test_a_teacher_that_is_not_there_is_named_though_the_file_passed_before(folder: Path) -> None:
    teacher = folder / "models/big"
    teacher.mkdir(parents=True)
    (teacher / "card.json").write_text("{}")
    change(folder, {"train": {"vit": {"teacher": "big"}}})
    assert preflight.main() == 0
    (teacher / "card.json").unlink()
    assert preflight.main() == 1
    assert list(preflight.problems(load_params())) == [
        "train.vit.teacher is 'big', but there is no models/big/card.json; put a trained model there (its model.pt and "
        "card.json), or set teacher to none."
    ]


def test_a_target_that_this_processor_cannot_measure_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(folder, {"quantize": {"target": "cpu-vnni"}})
    for here, count in (("cpu", 1), ("cpu-vnni", 0)):
        monkeypatch.setattr(targets, "processor", lambda *_, here=here: here)
        found = list(preflight.problems(load_params()))
        assert len(found) == count and all(
            "quantize.target is cpu-vnni, and this processor has no VNNI" in one for one in found
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what this machine has")
def test_a_device_that_is_not_there_is_named_for_each_family(folder: Path) -> None:
    change(folder, {"train": {"vit": {"override": {"device": "cuda"}}}})
    (found,) = preflight.problems(load_params())
    assert found.startswith("train.vit: train.device is 'cuda', but torch finds no CUDA device here")


def test_losses_that_make_no_sense_with_the_images_are_refused_when_the_file_is_read(folder: Path) -> None:
    for changes in (
        {"train": {"loss": "bce"}, "augment": {"mixup": 0.2}},
        {"train": {"vit": {"override": {"loss": "focal"}}}, "augment": {"cutmix": 1}},
    ):
        text = (ROOT / "params.yaml").read_text()
        (folder / "params.yaml").write_text(with_values(text, changes))
        with pytest.raises(ConfigError, match=r"augment\.(mixup|cutmix)"):
            load_params()


def test_overrides_and_processes_are_checked_when_the_file_is_read(folder: Path) -> None:
    for changes, sentence in (
        ({"train": {"vit": {"override": {"epoch": 3}}}}, "vit.override has the unknown key 'epoch'; did you mean 'epochs'"),
        ({"train": {"cnn": {"override": {"batch_size": 0}}}}, "cnn.override, 'batch_size' is 0; it must be at least 1"),
        ({"compute": {"processes": 65}}, "train.batch_size of the cnn is 64, too few images for compute.processes: 65"),
    ):
        (folder / "params.yaml").write_text(with_values((ROOT / "params.yaml").read_text(), changes))
        with pytest.raises(ConfigError) as refusal:
            load_params()
        assert sentence in str(refusal.value)


def test_images_count_once_they_are_collected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(folder, {"collect": {"source": "folder"}, "train": {"batch_size": 500, "base_batch_size": 500}})
    assert list(preflight.file_problems(load_params())) == []
    (folder / "data").mkdir()
    pq.write_table(pa.table({"id": ["x"] * 400}), folder / "data" / "images.parquet")
    monkeypatch.setenv("DVC_STAGE", "collect")  # about to be written anew: what lies there may be of another source
    assert list(preflight.file_problems(load_params())) == []
    monkeypatch.setenv("DVC_STAGE", "clean")
    assert len(list(preflight.file_problems(load_params()))) == 2


def stage(folder: Path) -> subprocess.CompletedProcess[str]:
    """The stage `collect` as DVC runs it."""
    environment = {**os.environ, "DVC_STAGE": "collect", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "pipeline.stages.collect"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_first_stage_under_dvc_refuses_and_writes_nothing(folder: Path) -> None:
    (folder / "data/raw").mkdir(parents=True)
    change(folder, {"train": {"cnn": {"architecture": "resnet999", "options": {}}}})
    done = stage(folder)
    assert done.returncode == 1
    assert done.stderr.startswith("ConfigError: train.cnn: There is no architecture 'resnet999'")
    assert "Traceback" not in done.stderr
    assert not (folder / "data/shards").exists() and not (folder / PASSED).exists()


def test_what_passed_is_not_checked_again(folder: Path) -> None:
    (folder / "data/raw").mkdir(parents=True)
    (folder / "data/feedback").mkdir()
    assert stage(folder).returncode == 0
    assert (folder / "data/images.parquet").exists()
    first = (folder / PASSED).read_text()
    change(folder, {"train": {"epochs": 31}})
    preflight.note_passed()
    assert (folder / PASSED).read_text().split()[0] != first.split()[0]
