"""Every architecture by name: shapes, refusals, and models that come back as they were saved."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from visionloop.card import ModelCard
from visionloop.errors import ArtifactError, ConfigError
from visionloop.models import Classifier, build, load_model
from visionloop.models.network import Option
from visionloop.paths import MODEL_TORCH
from visionloop.preprocess import PreprocessSpec

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def make(name: str, size: tuple[int, int], options: dict[str, Option] | None = None, **more: object) -> Classifier:
    return build(name, num_classes=5, image_size=size, mean=MEAN, std=STD, options=options or {}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "size", "options", "answer"),
    [
        ("small_resnet", (8, 8), {"width": 8}, ("cnn", 32, (8, 8))),
        # After a stem of 2 the stages have 32 x 24, 16 x 12, 8 x 6 and 4 x 3; the second is the last with 7 a side.
        ("small_resnet", (64, 48), {"width": 8, "stages": 4}, ("cnn", 64, (16, 12))),
        # From 128 pixels on the stem has a stride of 4: 40, 20, 10 a side, of which the last is still 7 and more.
        ("small_resnet", (160, 160), {"width": 8, "stages": 3}, ("cnn", 32, (10, 10))),
        ("small_vit", (16, 24), {"width": 32, "stem": "conv"}, ("vit", 32, (4, 6))),
        ("small_vit", (64, 64), {"patch": 8}, ("vit", 96, (8, 8))),
        ("small_vit", (32, 32), {"stem": "tokenizer", "pooling": "sequence"}, ("vit", 96, (8, 8))),
        ("small_vit", (32, 32), {"stem": "whitened", "pooling": "sequence"}, ("vit", 96, (7, 7))),
        ("resnet18", (32, 32), {}, ("cnn", 512, (8, 8))),
        ("mobilenet_v3_small", (64, 64), {}, ("cnn", 1024, (8, 8))),
        ("vit_b_16", (32, 32), {}, ("vit", 768, (2, 2))),
        ("swin_t", (64, 64), {}, ("vit", 768, (8, 8))),
    ],
)
def test_shapes_of_logits_embedding_and_heat_map(
    name: str, size: tuple[int, int], options: dict[str, Option], answer: tuple[str, int, tuple[int, int]]
) -> None:
    family, embedding, map_size = answer
    model = make(name, size, options).eval()
    layer = model.gradcam_layer()
    maps: list[torch.Tensor] = []
    layer.module.register_forward_hook(lambda module, inputs, output: maps.append(layer.to_map(output)))
    logits, vectors = model(torch.zeros(3, *size, 3, dtype=torch.uint8))
    assert (model.family, model.embedding_size, model.num_classes) == (family, embedding, 5)
    assert logits.shape == (3, 5)
    assert vectors.shape == (3, embedding)
    assert logits.dtype == vectors.dtype == torch.float32
    assert maps[0].shape[2:] == map_size


@pytest.mark.parametrize(("stride", "window"), [(1, 3), (2, 3), (4, 7), (8, 15)])
def test_a_stem_passes_over_no_pixel(stride: int, window: int) -> None:
    model = make("small_resnet", (64, 64), {"width": 8, "stages": 2, "stem_stride": stride})
    stem = model.network.get_submodule("stem")
    assert isinstance(stem, torch.nn.Conv2d)
    assert stem.kernel_size == (window, window)
    pixels = torch.zeros(1, 3, 64, 64, requires_grad=True)
    maps = stem(pixels)
    assert maps.shape[2:] == (64 // stride, 64 // stride)
    seen = torch.autograd.grad(maps.sum(), pixels)[0]
    assert bool((seen[0].abs().sum(0) > 0).all())


def test_normalisation_is_inside_and_a_flat_channel_stays_finite() -> None:
    model = build("small_resnet", num_classes=2, image_size=(8, 8), mean=MEAN, std=(0.2, 0.25, 0.0), options={"width": 4})
    seen: list[torch.Tensor] = []
    model.network.embed = lambda pixels: seen.append(pixels) or torch.zeros(1, model.embedding_size)  # type: ignore[assignment,method-assign,func-returns-value]
    model(torch.full((1, 8, 8, 3), 51, dtype=torch.uint8))  # 51 / 255 = 0.2
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([-1.5, -0.8, -0.1 * 255], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "options", "sentence"),
    [
        ("resnet81", (32, 32), {}, "There is no architecture 'resnet81'; the nearest are resnet18"),
        ("googlenet", (64, 64), {}, "is not covered; take resnet18"),
        ("small_vit", (18, 18), {}, "18 x 18 pixels cannot be cut into patches of 4"),
        ("small_vit", (16, 16), {"pacth": 2}, "did you mean 'patch'?"),
        ("small_vit", (16, 16), {"width": 10, "heads": 4}, "width 10 is no multiple of heads 4"),
        ("small_vit", (16, 16), {"stem": "deep"}, "it must be one of patch, conv, tokenizer, whitened."),
        ("small_vit", (16, 16), {"stem": "tokenizer", "patch": 1}, "make 'patch' 2 or more"),
        ("small_vit", (16, 16), {"stem": "whitened", "patch": 1}, "make 'patch' 2 or more"),
        ("small_vit", (24, 24), {"stem": "whitened", "patch": 6}, "make 'patch' 6 a power of two"),
        ("small_vit", (16, 16), {"pooling": "max"}, "it must be one of mean, sequence."),
        ("small_vit", (16, 16), {"flip_average": 1}, "it must be true or false"),
        ("small_vit", (16, 16), {"stochastic_depth": 1}, "it must be a number from 0 to below 1"),
        ("small_vit", (18, 18), {"stem": "conv", "patch": 6}, "make 'patch' 6 a power of two"),
        ("small_vit", (512, 512), {"patch": 4}, "use a larger 'patch'"),
        ("small_resnet", (8, 8), {"stages": 6}, "need images of at least 32 pixels, got 8"),
        ("small_resnet", (8, 8), {"width": 2.5}, "it must be a whole number from 4 to 1024"),
        ("small_resnet", (8, 8), {"dropout": 1.0}, "it must be a number from 0 to below 1"),
        ("resnet18", (32, 32), {"width": 32}, "torchvision's networks need `options: {}`"),
        ("resnet18", (32, 32), {"num_classes": 3}, "'num_classes' is set by visionloop itself"),
        ("alexnet", (16, 16), {}, "cannot work on images of 16 x 16 pixels"),
        ("vit_b_16", (16, 32), {}, "takes square images, got 16 x 32"),
        ("vit_b_16", (24, 24), {}, "multiples of 16"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(
    name: str, size: tuple[int, int], options: dict[str, Option], sentence: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        make(name, size, options)
    assert sentence in str(refusal.value)


def test_a_saved_model_comes_back_and_a_damaged_one_does_not(tmp_path: Path) -> None:
    model = make("small_vit", (16, 16), {"width": 32, "depth": 2}).eval()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    (tmp_path / MODEL_TORCH).write_bytes(buffer.getvalue())
    card = ModelCard(
        family="vit", architecture="small_vit", labels=tuple("abcde"), preprocess=PreprocessSpec(16, 16), mean=MEAN, std=STD,
        embedding_size=32, precision="fp32", parameters=1, architecture_options={"width": 32, "depth": 2},
    )  # fmt: skip
    card.with_files(tmp_path, (MODEL_TORCH,)).write(tmp_path)
    images = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    state = torch.random.get_rng_state()
    loaded, _ = load_model(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(loaded(images)[0], model(images)[0])

    # The hash is right, the network is another one.
    card.model_copy(update={"architecture_options": {"width": 64, "depth": 2}}).with_files(tmp_path, (MODEL_TORCH,)).write(
        tmp_path
    )
    with pytest.raises(ArtifactError, match="does not fit the small_vit of its card"):
        load_model(tmp_path)

    damaged = bytearray(buffer.getvalue())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / MODEL_TORCH).write_bytes(bytes(damaged))
    with pytest.raises(ArtifactError, match="damaged"):
        load_model(tmp_path)
