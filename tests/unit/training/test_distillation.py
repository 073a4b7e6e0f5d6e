"""Teachers: which are taken, what they see, and that a student with few images comes nearer to one that had many."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.training.worlds import LABELS, meta, params, split
from visionloop.card import ModelCard
from visionloop.errors import ArtifactError, ConfigError
from visionloop.files import sha256_bytes, write_bytes
from visionloop.models import Classifier, build
from visionloop.preprocess import PreprocessSpec
from visionloop.training.batches import Batch
from visionloop.training.distillation import Teacher, load_teacher, teacher_id
from visionloop.training.losses import Loss

WORLD = meta()
OPTIONS: dict[str, int | float | str | bool] = {"width": 8, "stages": 2}


def net(seed: int, size: int = 8) -> Classifier:
    torch.manual_seed(seed)
    return build("small_resnet", num_classes=3, image_size=(size, size), mean=WORLD.mean, std=WORLD.std, options=OPTIONS)


def store(model: Classifier, size: int = 8, labels: tuple[str, ...] = LABELS, name: str = "big") -> bytes:
    """Write models/<name> as the stage `train` does; gives the bytes of the weights."""
    folder = Path("models") / name
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    folder.mkdir(parents=True)
    write_bytes(folder / "model.pt", buffer.getvalue())
    card = ModelCard(
        family="cnn", architecture="small_resnet", architecture_options=OPTIONS, labels=labels,
        preprocess=PreprocessSpec(size, size), mean=WORLD.mean, std=WORLD.std, embedding_size=model.embedding_size,
        precision="fp32", parameters=1,
    )  # fmt: skip
    card.with_files(folder, ("model.pt",)).write(folder)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_teacher_is_the_stored_model_and_learns_nothing() -> None:
    model = net(0).eval()
    weights = store(model)
    settings = params(teacher="big", distillation_share=0.5).vit
    teacher = load_teacher(settings, WORLD)
    assert teacher is not None
    images = torch.from_numpy(split(5, 0).images)
    with torch.no_grad():
        assert torch.equal(teacher(images), model(images)[0])
    assert not teacher(images).requires_grad
    assert not teacher.classifier.training
    assert teacher_id(settings) == sha256_bytes(weights)


def test_none_is_nobody() -> None:
    assert load_teacher(params().vit, WORLD) is None
    assert teacher_id(params().vit) == ""


@pytest.mark.parametrize("size", [16, 4])
def test_a_teacher_of_another_size_sees_the_images_at_its_own(size: int) -> None:
    model = net(0, size).eval()
    teacher = Teacher(model, (size, size))
    # Halves of one colour each, which no resizing changes but beside their border; a whole of one colour not even there.
    whole = torch.tensor([200, 40, 90], dtype=torch.uint8).expand(2, 8, 8, 3)
    with torch.no_grad():
        wanted = model(torch.tensor([200, 40, 90], dtype=torch.uint8).expand(2, size, size, 3))[0]
    torch.testing.assert_close(teacher(whole), wanted)
    torch.testing.assert_close(teacher(whole.float()), wanted)
    # A checkerboard of single pixels is smoothed to its mean before it shrinks.
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2 * 200).to(torch.uint8)[None, :, :, None].expand(1, 8, 8, 3)
    if size < 8:
        with torch.no_grad():
            gray = model(torch.full((1, size, size, 3), 100.0))[0]
            sharp = model(board[:, ::2, ::2])[0]
        assert float((teacher(board) - gray).abs().max()) < 0.2 * float((sharp - gray).abs().max())


def test_a_teacher_of_other_classes_is_refused() -> None:
    settings = params(teacher="big").vit
    store(net(0), labels=("red", "green", "violet"))
    said = (
        r"^The teacher 'big' knows other classes than the data \(only the teacher has 'violet', only the data has 'blue'\); "
        r"train it on this data first, or set teacher to none\.$"
    )
    with pytest.raises(ConfigError, match=said):
        load_teacher(settings, WORLD)


def test_the_same_classes_in_another_order_are_refused() -> None:
    store(net(0), labels=("blue", "red", "green"))
    with pytest.raises(ConfigError, match=r"\(the same ones in another order\)"):
        load_teacher(params(teacher="big").vit, WORLD)


def test_a_teacher_that_is_not_there_or_damaged_is_refused() -> None:
    settings = params(teacher="big").vit
    with pytest.raises(ArtifactError, match=r"models/big/card\.json cannot be read"):
        load_teacher(settings, WORLD)
    with pytest.raises(ArtifactError, match=r"models/big/card\.json cannot be read"):
        teacher_id(settings)
    store(net(0))
    path = Path("models/big/model.pt")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"models/big/model\.pt"):
        load_teacher(settings, WORLD)


def learn(model: Classifier, images: Tensor, labels: Tensor, teacher: Teacher | None, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    settings = params(distillation_share=0.9, distillation_temperature=4.0, label_smoothing=0.0)
    loss = Loss(settings, torch.bincount(labels, minlength=3), torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels), generator=random).split(12):  # type: ignore[no-untyped-call]
            batch = Batch(images[chosen], labels[chosen])
            optimizer.zero_grad()
            value = loss(model(batch.images)[0], batch, None if teacher is None else teacher(batch.images))
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()


def noisy(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The squares of `worlds.split` behind noise of 120 levels, so that a few images are not enough to know them."""
    drawn = split(count, seed)
    noise = 120 * torch.randn(drawn.images.shape, generator=torch.Generator().manual_seed(seed))
    return (torch.from_numpy(drawn.images) + noise).round().clamp(0, 255).to(torch.uint8), torch.from_numpy(drawn.labels)


def test_a_student_of_few_images_comes_nearer_to_a_teacher_of_many() -> None:
    """Two students of 48 images each, with and without the teacher, on 300 that none has seen: 422 and 509 right of 600."""
    unseen, truth = noisy(300, 2)
    master = net(0)
    learn(master, *noisy(384, 0), None, epochs=7)
    teacher = Teacher(master, (8, 8))
    wanted = torch.softmax(teacher(unseen), 1)
    far, right = {"alone": 0.0, "taught": 0.0}, {"alone": 0, "taught": 0}
    for seed in (2, 3):
        few, labels = noisy(48, seed + 4)
        for name, master_or_none in (("alone", None), ("taught", teacher)):
            student = net(seed)
            learn(student, few, labels, master_or_none, epochs=20)
            with torch.no_grad():
                answers = torch.softmax(student(unseen)[0], 1)
            far[name] += float((answers - wanted).abs().sum(1).mean())
            right[name] += int((answers.argmax(1) == truth).sum())
    assert far["taught"] < 0.8 * far["alone"], (far, right)
    assert right["taught"] > right["alone"] + 20, (far, right)
