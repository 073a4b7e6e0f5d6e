"""Starting weights from a file: what fits is taken, what does not is said, what is dangerous is refused."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
import torchvision

from visionloop.errors import ArtifactError, ConfigError
from visionloop.models import Classifier, build, check_buildable


def make(name: str, weights: str | None, *, classes: int = 5, size: int = 32) -> Classifier:
    return build(
        name, num_classes=classes, image_size=(size, size), mean=(0.5,) * 3, std=(0.2,) * 3, options={}, weights=weights
    )


def test_a_torchvision_file_with_other_classes_leaves_only_the_head_fresh(tmp_path: Path) -> None:
    file = tmp_path / "resnet18.pth"
    source = torchvision.models.get_model("resnet18", weights=None)
    torch.save(source.state_dict(), file)
    model = make("resnet18", str(file))
    assert torch.equal(
        model.network.state_dict()["body.layer4.1.conv2.weight"], source.state_dict()["layer4.1.conv2.weight"]
    )
    assert model.network.head.out_features == 5
    assert model.weight_notes == (
        f"120 of 122 tensors come from {file}",
        "the head is fresh: the weights have 1000 classes, the data 5",
    )


def test_own_weights_with_the_same_classes_are_taken_whole(tmp_path: Path) -> None:
    file = tmp_path / "own.pt"
    source = make("small_resnet", None)
    torch.save({"state_dict": source.state_dict()}, file)
    model = make("small_resnet", str(file))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
    assert len(model.weight_notes) == 1


def test_the_positions_of_a_vit_are_interpolated_to_the_image_size(tmp_path: Path) -> None:
    file = tmp_path / "vit.pth"
    source = torchvision.models.get_model("vit_b_16", weights=None, image_size=64, num_classes=5)
    torch.save(source.state_dict(), file)
    model = make("vit_b_16", str(file), size=32)
    positions = model.network.state_dict()["body.encoder.pos_embedding"]
    assert positions.shape == (1, 1 + 2 * 2, 768)
    assert torch.equal(positions[:, 0], source.state_dict()["encoder.pos_embedding"][:, 0])
    assert len(model.weight_notes) == 1


class Danger:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("was_run"),))


def test_files_that_are_no_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        make("small_resnet", "missing.pt")
    Path("noise.pt").write_bytes(b"\x80\x02noise")
    with pytest.raises(ArtifactError, match="cannot be read as tensors"):
        make("small_resnet", "noise.pt")
    Path("danger.pt").write_bytes(pickle.dumps(Danger(), protocol=2))
    with pytest.raises(ArtifactError, match="cannot be read as tensors"):
        make("small_resnet", "danger.pt")
    assert not Path("was_run").exists()
    torch.save([1, 2], "list.pt")
    with pytest.raises(ArtifactError, match="holds a list"):
        make("small_resnet", "list.pt")
    torch.save(make("small_resnet", None).state_dict(), "resnet.pt")
    with pytest.raises(ArtifactError, match="are not of small_vit"):
        make("small_vit", "resnet.pt")


def test_torchvision_has_no_weights_for_own_architectures() -> None:
    with pytest.raises(ConfigError, match="torchvision has no weights for small_vit"):
        make("small_vit", "torchvision")


def test_a_download_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The download goes through urllib, which asks this proxy; the port is closed.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ArtifactError, match="give its local path as the weights"):
        make("resnet18", "torchvision")


def test_a_file_with_another_hash_than_the_one_named_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "own.pt"
    torch.save(make("small_resnet", None).state_dict(), file)
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    options = {"num_classes": 5, "image_size": (32, 32), "mean": (0.5,) * 3, "std": (0.2,) * 3, "options": {}}
    model = build("small_resnet", **options, weights=str(file), weights_sha256=right)  # type: ignore[arg-type]
    assert len(model.weight_notes) == 1
    with pytest.raises(ArtifactError, match=f"own.pt has the sha256 {right}, and weights_sha256 names {'0' * 64}; fetch"):
        build("small_resnet", **options, weights=str(file), weights_sha256="0" * 64)  # type: ignore[arg-type]


def test_weights_that_are_not_there_are_known_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torchvision has no weights for small_vit"):
        check_buildable("small_vit", (32, 32), {}, weights="torchvision")
    check_buildable("resnet18", (32, 32), {}, weights="torchvision")
    with pytest.raises(ArtifactError, match=r"absent\.pt does not exist"):
        check_buildable("resnet18", (32, 32), {}, weights=str(tmp_path / "absent.pt"))
    (tmp_path / "other.pt").write_bytes(b"another")
    with pytest.raises(ArtifactError, match="and weights_sha256 names 111"):
        check_buildable("resnet18", (32, 32), {}, weights=str(tmp_path / "other.pt"), weights_sha256="1" * 64)
