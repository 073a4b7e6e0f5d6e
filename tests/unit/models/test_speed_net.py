"""The network for small images: what it starts as, what its parts promise, and a mirrored answer that travels to ONNX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from visionloop.card import ModelCard
from visionloop.compression.export import onnx_bytes, torch_answers
from visionloop.compression.quantize import Recipe, quantize
from visionloop.errors import ConfigError
from visionloop.explanation.methods import heat_maps
from visionloop.models import Classifier, build, check_buildable
from visionloop.models.network import Option
from visionloop.models.speed_net import Group, SpeedNet
from visionloop.preprocess import PreprocessSpec
from visionloop.runtime import OnnxModel

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SMALL: dict[str, Option] = {"width": 24, "width2": 32, "width3": 40}


def make(size: tuple[int, int] = (16, 16), **options: Option) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build("speed_net", num_classes=5, image_size=size, mean=MEAN, std=STD, options={**SMALL, **options})


def network(**options: Option) -> SpeedNet:
    found = make((16, 16), **options).network
    assert isinstance(found, SpeedNet)
    return found


def group_of(net: SpeedNet, index: int) -> Group:
    found = net.groups[index]
    assert isinstance(found, Group)
    return found


def pictures(count: int, size: int = 16, seed: int = 0) -> Tensor:
    """Smooth random pictures, uint8 [N, size, size, 3], whose neighbouring pixels are alike as in photos."""
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 3, 5, 5)).astype(np.float32))
    smooth = F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=False)
    return (128 + 50 * smooth).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def normalised(images: Tensor) -> Tensor:
    return (images.permute(0, 3, 1, 2).float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_published_arithmetic_of_airbench94() -> None:
    """Jordan's tables give 0.29 PFLOP for 8 epochs of 50,000 images, so 0.725 GFLOP an image; his first layer learns a bias
    for three of the epochs, for whose gradient the first group passes one back that is not needed here."""
    net = build("speed_net", num_classes=10, image_size=(32, 32), mean=MEAN, std=STD, options={}).network
    images = torch.zeros(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        net.head(net.embed(images)).sum().backward()
    assert counter.get_total_flops() / 2 == pytest.approx(0.681e9, rel=0.002)


def test_whitened_patches_are_uncorrelated_with_variance_one() -> None:
    net, images = network(), normalised(pictures(300))
    # Noise keeps every direction's variance far above the constant that guards against directions without any.
    images = images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    net.prepare(images)
    answers = F.conv2d(images, net.whiten.weight).transpose(0, 1).flatten(1)
    second_moments = answers[:12] @ answers[:12].T / answers.shape[1]
    # 5e-4 beside a least variance of about 0.07 leaves 0.993.
    torch.testing.assert_close(second_moments, torch.eye(12), atol=0.01, rtol=0)
    torch.testing.assert_close(answers[12:], -answers[:12])


def test_filters_start_as_the_identity_as_far_as_channels_go() -> None:
    net = network()
    maps = torch.randn(2, 24, 9, 9)
    first = group_of(net, 1).convolutions[0]
    assert isinstance(first, nn.Conv2d)
    torch.testing.assert_close(first(maps)[:, :24], maps)
    assert float(first.weight[24:].detach().abs().max()) < 1 / (24 * 9) ** 0.5  # torch's own start


def test_mirrored_images_have_the_same_answer_in_eval_mode_and_not_in_training() -> None:
    model = make(flip_average=True)
    images = pictures(6)
    mirrored = images.flip(2)
    model.train()
    assert not torch.allclose(model(images)[0], model(mirrored)[0], atol=1e-3)
    model.eval()
    torch.testing.assert_close(model(images), model(mirrored))
    plain = make().eval()
    plain.load_state_dict(model.state_dict())
    for averaged, one, other in zip(model(images), plain(images), plain(mirrored), strict=True):
        torch.testing.assert_close(averaged, (one + other) / 2)


def test_after_a_step_filters_have_their_norm_and_answers_stay() -> None:
    model = make()
    images = pictures(20)
    with torch.no_grad():
        before = model.train()(images)[0]
        for name, weight in model.network.named_parameters():
            if "convolutions" in name:
                weight.mul_(3)
    model.network.after_step()
    last = dict(model.network.named_parameters())["groups.2.convolutions.1.weight"]
    assert float(last.detach().norm()) == pytest.approx(40**0.5, rel=1e-5)
    # The norm's epsilon of 1e-5 beside the variance of its input is what is left of the scale.
    torch.testing.assert_close(model(images)[0], before, atol=2e-3, rtol=0)


def test_rates_are_those_of_the_options_and_frozen_parts_do_not_learn() -> None:
    with torch.random.fork_rng():
        net = build(
            "speed_net",
            num_classes=5,
            image_size=(16, 16),
            mean=MEAN,
            std=STD,
            options={**SMALL, "bias_rate": 8, "head_rate": 2},
        ).network
    scales = net.learning_rate_scales()
    assert scales == {
        **{f"groups.{group}.norms.{norm}.bias": 8.0 for group in range(3) for norm in range(2)},
        "head.weight": 2.0,
    }
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen == {"whiten.weight", *(f"groups.{group}.norms.{norm}.weight" for group in range(3) for norm in range(2))}


def test_three_convolutions_bridge_the_last_two() -> None:
    group = group_of(network(convolutions=3), 0).eval()
    maps = torch.randn(2, 24, 8, 8)
    first, second, third = group.convolutions
    halved = F.gelu(group.norms[0](F.max_pool2d(first(maps), 2)))
    answer = F.gelu(group.norms[2](third(F.gelu(group.norms[1](second(halved))))) + halved)
    torch.testing.assert_close(group(maps), answer)


def test_mirrored_answer_is_in_the_onnx_file_and_survives_int8() -> None:
    model = make(flip_average=True).eval()
    model.network.prepare(normalised(pictures(100)))
    images = pictures(70, seed=1).numpy()
    card = ModelCard(
        family="cnn", architecture="speed_net", architecture_options={**SMALL, "flip_average": True}, labels=tuple("abcde"),
        preprocess=PreprocessSpec(16, 16), mean=MEAN, std=STD, embedding_size=40, precision="fp32", parameters=1, lineage={},
    )  # fmt: skip
    fp32 = onnx_bytes(model, card=card, opset=20)
    logits, embedding = OnnxModel(fp32, threads=1).run(images)
    torch_logits, torch_embedding = torch_answers(model, images)
    np.testing.assert_allclose(logits, torch_logits, atol=1e-4)
    np.testing.assert_allclose(embedding, torch_embedding, atol=1e-3)
    np.testing.assert_allclose(OnnxModel(fp32, threads=1).run(images[:1])[0], torch_logits[:1], atol=1e-4)
    int8 = quantize(fp32, images, Recipe(("Conv", "Gemm", "MatMul", "Add", "Relu"), seven_bits=True))
    of_int8 = OnnxModel(int8, threads=1).run(images)[0]
    assert float(np.abs(of_int8 - logits).max()) < 0.35 * float(logits.std())


def test_the_map_of_a_mirrored_image_is_the_mirrored_map() -> None:
    model = make((32, 32), flip_average=True)
    images = pictures(3, 32)
    maps = heat_maps(model, images.numpy(), np.array([0, 1, 2]), "integrated_gradcam")
    assert maps.shape == (3, 32, 32)
    assert maps.max() == 1
    mirrored = heat_maps(model, images.flip(2).numpy(), np.array([0, 1, 2]), "integrated_gradcam")
    np.testing.assert_allclose(mirrored, maps[:, :, ::-1], atol=1e-3)


@pytest.mark.parametrize(
    ("size", "options", "sentence"),
    [
        ((8, 32), {}, "speed_net: three halvings need images of at least 9 pixels, got 8; raise preprocess.height"),
        ((32, 32), {"flip_averages": True}, "did you mean 'flip_average'"),
        ((32, 32), {"flip_average": 1}, "option 'flip_average' is 1; it must be true or false"),
        ((32, 32), {"width": 23}, "option 'width' is 23; it must be a whole number from 24 to 1024"),
        ((32, 32), {"convolutions": 4}, "option 'convolutions' is 4; it must be a whole number from 2 to 3"),
        ((32, 32), {"bias_rate": -1.0}, "option 'bias_rate' is -1.0; it must be a number from 0 to below 100000"),
    ],
)
def test_options_and_sizes_that_do_not_fit_are_refused(
    size: tuple[int, int], options: dict[str, Option], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_buildable("speed_net", size, options)


@pytest.mark.parametrize("size", [(9, 9), (17, 40)])
def test_the_smallest_and_an_oblong_image_are_answered(size: tuple[int, int]) -> None:
    logits, embedding = make(size, flip_average=True).eval()(torch.zeros(2, *size, 3, dtype=torch.uint8))
    assert (logits.shape, embedding.shape) == ((2, 5), (2, 40))
