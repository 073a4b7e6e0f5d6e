"""Maps against hand computation, and on trained networks with images whose evidence the test places."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torchvision.models import VisionTransformer

from tests.unit.explanation import tiny
from visionloop.errors import ArtifactError
from visionloop.explanation.attention import _weighted, attention_of, roll_out
from visionloop.explanation.gradient import GradientMethod, gradient_maps
from visionloop.explanation.methods import METHODS, heat_maps, methods_of, scaled
from visionloop.models import Classifier, build
from visionloop.models.network import Option
from visionloop.models.torchvision_networks import TorchvisionNetwork, _find_gradcam_layer

SIZE, SQUARE = 16, 4
Pixels = npt.NDArray[np.uint8]
Classes = npt.NDArray[np.int64]


def draw(labels: Classes, rng: np.random.Generator, place: tuple[int, int] | None = None) -> Pixels:
    """Noise; in class 1 with a red square, in class 2 with a green one, so nothing else in the image speaks for them."""
    images = rng.integers(60, 120, (len(labels), SIZE, SIZE, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = rng.integers(0, SIZE - SQUARE + 1, 2) if place is None else place
        if label:
            image[row : row + SQUARE, column : column + SQUARE] = 60
            image[row : row + SQUARE, column : column + SQUARE, label - 1] = 250
    return images


def trained(architecture: str, options: dict[str, Option]) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        model = build(
            architecture, num_classes=3, image_size=(SIZE, SIZE), mean=(0.36,) * 3, std=(0.15,) * 3, options=options
        )
        optimizer = torch.optim.AdamW(model.parameters(), 0.003)
        for _ in range(150):
            labels = rng.integers(0, 3, 32)
            loss = F.cross_entropy(model(torch.from_numpy(draw(labels, rng)))[0], torch.from_numpy(labels))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def hooks(model: Classifier) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def tiny_torchvision_vit() -> Classifier:
    body = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )
    torch.nn.init.normal_(body.heads.head.weight)  # torchvision's own start is 0: no class would have any evidence
    network = TorchvisionNetwork("vit_tiny", body, "heads.head")
    network.gradcam = _find_gradcam_layer("vit_tiny", network, (32, 32))
    return Classifier("vit_tiny", network, mean=(0.5,) * 3, std=(0.2,) * 3).eval()


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("small_resnet", {"width": 8}),
        ("small_vit", {"width": 32, "depth": 2, "patch": 4}),
        (
            "small_vit",
            {"patch": 2, "width": 32, "depth": 2, "stem": "tokenizer", "pooling": "sequence", "flip_average": True},
        ),
    ],
)
def test_maps_point_at_a_square_that_covers_a_sixteenth_of_the_image(architecture: str, options: dict[str, Option]) -> None:
    model = trained(architecture, options)
    assert methods_of(model) == METHODS[: 3 if architecture == "small_resnet" else 4]
    found: dict[str, list[float]] = {}
    for place in ((0, 0), (SIZE - SQUARE, 0), (4, 8)):
        labels = np.arange(30) % 2 + 1
        images = draw(labels, np.random.default_rng(7), place)
        with torch.inference_mode():
            assert (model(torch.from_numpy(images))[0].argmax(1).numpy() == labels).mean() > 0.9
        near = np.zeros((SIZE, SIZE), dtype=bool)  # the square and two pixels around it, for the coarse grid of the map
        near[max(0, place[0] - 2) : place[0] + SQUARE + 2, max(0, place[1] - 2) : place[1] + SQUARE + 2] = True
        for method in methods_of(model):
            maps = heat_maps(model, images, labels, method)
            assert maps.shape == (30, SIZE, SIZE)
            assert maps.min() >= 0
            assert set(maps.max(axis=(1, 2)).tolist()) <= {0, 1}
            found.setdefault(method, []).append(float(near.ravel()[maps.reshape(30, -1).argmax(1)].mean()))
            if method == "integrated_gradcam":
                share = maps[:, near].sum() / maps.sum()
                assert share > 0.5, f"{place}: {share:.2f} of the map on {near.mean():.2f} of the image"
    pointed = {method: float(np.mean(shares)) for method, shares in found.items()}
    assert pointed["layercam"] > 0.8
    if model.family == "cnn":  # in a ViT one gradient for a channel at all places may leave nothing
        assert pointed["gradcam"] > 0.8
    else:  # with a mean over patches, evidence need not pass through attention at all
        assert pointed["rollout"] > 0.45


@pytest.mark.parametrize("method", ["gradcam", "layercam", "integrated_gradcam"])
def test_maps_of_a_linear_network_are_those_computed_by_hand(method: GradientMethod) -> None:
    weight = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 1.0, 0.0]])
    model = tiny.linear(weight)
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
    classes = np.array([0, 1, 1, 0])
    levels, gradient = images / 255, weight.numpy()[classes][:, None, None] / 30  # the mean over 5 x 6 places
    by_hand = {
        "gradcam": (gradient * levels).sum(-1),
        "layercam": (gradient.clip(0) * levels).sum(-1),
        "integrated_gradcam": (gradient * (levels - levels.mean((1, 2), keepdims=True))).sum(-1),
    }[method].clip(0)
    np.testing.assert_allclose(gradient_maps(model, images, classes, method), by_hand, atol=1e-6)
    largest = by_hand.max((1, 2), keepdims=True)
    np.testing.assert_allclose(heat_maps(model, images, classes, method), by_hand / largest, atol=1e-5)


def test_an_image_without_evidence_has_an_empty_map() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert not heat_maps(tiny.colours(), black, np.array([0, 2]), "gradcam").any()
    assert not scaled(np.zeros((1, 2, 2), np.float32), 4, 4).any()


def test_rolling_out_attention_by_hand() -> None:
    identity = torch.eye(3)[None]
    assert torch.equal(roll_out([identity] * 3), 8 * identity)  # each layer adds once what is there
    first = torch.tensor([[[0.2, 0.8], [0.5, 0.5]]])
    second = torch.tensor([[[0.0, 1.0], [0.3, 0.7]]])
    one = first[0].numpy() + np.eye(2)
    np.testing.assert_allclose(roll_out([first, second])[0], one + second[0].numpy() @ one, rtol=1e-6)


def test_attention_is_torchs_own_and_its_gradient_autograds() -> None:
    model = tiny_torchvision_vit()
    attention = model.network.attention()
    assert attention is not None
    assert len(attention.layers) == 2
    layer = attention.layers[0]
    tokens = torch.randn((2, 17, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, expected = layer.source(tokens, tokens, tokens, need_weights=True, average_attn_weights=False)
        found, value = attention_of(layer, tokens)
    torch.testing.assert_close(found, expected)
    # What a loss says of the layer's answer, followed back by torch to the attention itself.
    upstream = torch.randn((2, 17, 16), generator=torch.Generator().manual_seed(1))
    leaf = found.clone().requires_grad_()
    answer = (leaf @ value).transpose(1, 2).flatten(2) @ layer.project.detach().T
    (gradient,) = torch.autograd.grad((answer * upstream).sum(), leaf)
    torch.testing.assert_close(_weighted(layer, tokens, upstream), F.relu(found * gradient).mean(1))


def test_attention_of_the_own_network_gives_its_answers() -> None:
    model = build(
        "small_vit", num_classes=3, image_size=(16, 16), mean=(0.5,) * 3, std=(0.2,) * 3, options={"width": 32, "depth": 1}
    ).eval()
    attention = model.network.attention()
    assert attention is not None
    layer = attention.layers[0]
    seen: list[torch.Tensor] = []
    layer.source.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    layer.answer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        model(torch.from_numpy(draw(np.array([1, 2]), np.random.default_rng(0))))
        weights, value = attention_of(layer, seen[0])
        bias = layer.answer.get_parameter("bias")
        torch.testing.assert_close((weights @ value).transpose(1, 2).flatten(2) @ layer.project.T + bias, seen[1])


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("small_resnet", 16, {"width": 8, "flip_average": True}),
        ("speed_net", 32, {"width": 24, "width2": 24}),
        ("small_vit", 16, {"width": 16, "depth": 2}),
        ("small_vit", 16, {"width": 16, "depth": 2, "stem": "tokenizer", "pooling": "sequence", "flip_average": True}),
        ("small_vit", 32, {"width": 24, "depth": 2, "stem": "whitened", "flip_average": True}),
        ("resnet18", 32, {}),
        ("mobilenet_v3_small", 64, {}),
        ("efficientnet_b0", 32, {}),
        ("convnext_tiny", 32, {}),
        ("swin_t", 32, {}),
        ("vit_tiny", 32, {}),
    ],
)
def test_every_architecture_has_a_layer_that_gives_maps(name: str, size: int, options: dict[str, Option]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (
            tiny_torchvision_vit()
            if name == "vit_tiny"
            else build(name, num_classes=5, image_size=(size, size), mean=(0.5,) * 3, std=(0.2,) * 3, options=options)
        )
    model.requires_grad_(False)  # frozen, as a taken-over network may be
    rolled = name in ("small_vit", "vit_tiny")
    assert ("rollout" in methods_of(model)) == rolled
    images = np.random.default_rng(3).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    for method in methods_of(model):
        maps = heat_maps(model, images, np.array([0, 4]), method)
        assert maps.shape == (2, size, size)
        assert ((maps >= 0) & (maps <= 1)).all()
        if method == "integrated_gradcam":  # some place is above the mean of all
            assert maps.max((1, 2)).tolist() == [1, 1]
        assert maps.tobytes() == heat_maps(model, images, np.array([0, 4]), method).tobytes()
    assert hooks(model) == 0


def test_a_class_token_is_no_place_and_stays_as_it_is() -> None:
    model = tiny_torchvision_vit()
    layer = model.gradcam_layer()
    assert layer.leading == 1
    # Where all patches are alike nothing is special, whatever the class token holds.
    with torch.no_grad():
        model.get_parameter("network.body.encoder.pos_embedding").zero_()
    flat = np.full((1, 32, 32, 3), 90, np.uint8)
    assert gradient_maps(model, flat, np.array([1]), "integrated_gradcam").max() < 1e-5


def test_no_image_gives_no_map_and_what_cannot_be_is_told() -> None:
    model = build("small_resnet", num_classes=3, image_size=(8, 8), mean=(0.5,) * 3, std=(0.2,) * 3, options={"width": 4})
    none = np.zeros((0, 8, 8, 3), np.uint8)
    assert heat_maps(model, none, np.zeros(0, np.int64), "gradcam").shape == (0, 8, 8)
    one = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(ArtifactError, match="small_resnet has no attention over the whole image to roll out; set"):
        heat_maps(model, one, np.array([0]), "rollout")
    with pytest.raises(ArtifactError, match="each image needs one of the 3 classes that the model knows, from 0"):
        heat_maps(model, one, np.array([3]), "gradcam")
    blind = Classifier("blind", tiny.Blind(), mean=(0.5,) * 3, std=(0.2,) * 3)
    with pytest.raises(ArtifactError, match="blind names no layer that a map could be made from; give its network"):
        heat_maps(blind, one, np.array([0]), "layercam")
    assert hooks(model) == hooks(blind) == 0
