"""The parts of the Compact Transformer, each against what can be worked out by hand or by torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.onnx_models import TEST, TRAIN, digits
from visionloop import models
from visionloop.card import ModelCard
from visionloop.compression.export import onnx_bytes, torch_answers
from visionloop.compression.quantize import Recipe, quantize
from visionloop.errors import ConfigError
from visionloop.models.network import Option
from visionloop.models.small_vit import SmallViT, _attend, _Skip, build
from visionloop.preprocess import PreprocessSpec
from visionloop.runtime import OnnxModel

COMPACT: dict[str, Option] = {"patch": 4, "width": 32, "depth": 2, "heads": 2, "stem": "tokenizer", "pooling": "sequence"}


def compact(**options: Option) -> SmallViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(10, (16, 24), {**COMPACT, **options})


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def test_the_tokenizer_answers_like_the_papers_convolution_relu_and_pooling() -> None:
    network = compact()
    assert network.grid == (4, 6)
    maps = images()
    for convolution in (module for module in network.stem.modules() if isinstance(module, nn.Conv2d)):
        maps = F.max_pool2d(F.relu(F.conv2d(maps, convolution.weight, padding=1)), 3, 2, 1)
    assert torch.equal(network.stem(images()), maps)
    # 3 x 64 and 64 x 32 filters of 3 x 3, without biases.
    assert sum(parameter.numel() for parameter in network.stem.parameters()) == (3 * 64 + 64 * 32) * 9


def whitened(size: tuple[int, int] = (16, 24), **options: Option) -> SmallViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(10, size, {**COMPACT, "stem": "whitened", "stem_width": 24, **options})


def test_the_whitened_stem_starts_as_the_identity_on_whitened_patches_and_halves_twice() -> None:
    network = whitened().eval()
    assert network.grid == (3, 5)  # 15 x 23 positions, halved twice
    assert tuple(network.embed(images()).shape) == (3, 32)
    network.prepare(images(400))
    maps = F.conv2d(images(400), network.stem.whiten.weight)  # type: ignore[union-attr, arg-type]
    covariance = torch.cov(maps[:, :12].transpose(0, 1).flatten(1))
    assert torch.allclose(covariance, torch.eye(12), atol=0.02)  # less what 5e-4 takes, over 138,000 patches
    # 24 channels pass through filters that begin as the identity, so the maxima of the whitened patches come out first.
    groups = network.stem.groups(F.gelu(maps))  # type: ignore[operator]
    by_hand = F.gelu(maps)
    for _ in range(2):  # a fresh norm in use divides by the root of 1 + 1e-5
        by_hand = F.gelu(F.gelu(F.max_pool2d(by_hand, 2)))
    assert torch.allclose(groups[:, :24], by_hand, atol=1e-3)


def test_the_whitened_stem_stays_frozen_and_its_filters_keep_their_norm() -> None:
    network = whitened()
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert "stem.whiten.weight" not in learning
    assert "stem.groups.0.convolutions.0.weight" in learning
    scales = whitened(stem_rate=2.0, stem_bias_rate=100.0).learning_rate_scales()
    parts = {"convolutions.{}.weight": 2.0, "norms.{}.bias": 100.0}
    assert scales == {
        f"stem.groups.{g}.{name.format(c)}": rate for g in (0, 1) for c in (0, 1) for name, rate in parts.items()
    }
    assert not compact(stem_rate=2.0).learning_rate_scales()
    blocks = {name: value.detach().clone() for name, value in network.blocks.named_parameters()}
    with torch.no_grad():
        for parameter in network.stem.parameters():
            parameter.mul_(3)
    network.after_step()
    for name, parameter in network.stem.named_parameters():
        if "convolutions" in name:
            assert float(parameter.detach().norm()) == pytest.approx(len(parameter) ** 0.5, rel=1e-5)
    assert all(torch.equal(blocks[name], value) for name, value in network.blocks.named_parameters())
    compact().after_step()  # other stems have nothing to bring back
    fresh = compact()
    before = [parameter.detach().clone() for parameter in fresh.parameters()]
    fresh.prepare(images(10))
    assert all(torch.equal(old, new) for old, new in zip(before, fresh.parameters(), strict=True))


def test_an_image_of_one_patch_is_too_small_for_the_whitened_stem() -> None:
    with pytest.raises(ConfigError, match="leaves no patch of images of 4 x 8 pixels and a 'patch' of 4"):
        whitened((4, 8))
    assert whitened((8, 8)).grid == (1, 1)


def test_sequence_pooling_is_a_mean_weighed_by_a_softmax_over_the_tokens() -> None:
    network = compact().eval()
    assert network.weigh is not None
    with torch.no_grad():
        tokens = network.norm(network.blocks(network.stem(images()).flatten(2).transpose(1, 2) + network.positions))
        scores = torch.exp(tokens @ network.weigh.weight[0] + network.weigh.bias)
        by_hand = (scores[..., None] * tokens).sum(1) / scores.sum(1, keepdim=True)
        assert torch.allclose(network.embed(images()), by_hand, atol=1e-5)
        network.weigh.weight.zero_()  # no token is preferred: the plain mean
        assert torch.allclose(network.embed(images()), tokens.mean(1), atol=1e-6)


def test_stochastic_depth_leaves_out_its_share_of_the_images_and_keeps_the_mean() -> None:
    skip = _Skip(0.25)
    ones = torch.ones(40_000, 2, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        thinned = skip(ones)
    values = thinned.unique()
    assert values.tolist() == [0, pytest.approx(4 / 3)]
    assert torch.equal(thinned, thinned[:, :1, :1].expand_as(thinned))  # all of an image or nothing
    # The share of 40,000 draws has a deviation of 0.2 points.
    assert float((thinned[:, 0, 0] == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert torch.equal(skip.eval()(ones), ones)


def test_the_first_block_is_never_left_out_and_the_last_by_the_whole_share() -> None:
    blocks = compact(depth=5, stochastic_depth=0.2).blocks
    assert [module.share for module in blocks.modules() if isinstance(module, _Skip)] == pytest.approx(
        [0, 0.05, 0.1, 0.15, 0.2]
    )
    assert [module.share for module in compact(depth=1, stochastic_depth=0.2).modules() if isinstance(module, _Skip)] == [0]


def test_attention_in_bfloat16_on_a_cpu_is_torchs_own_but_for_rounding() -> None:
    query, key, value = torch.randn(3, 4, 2, 16, 8, generator=torch.Generator().manual_seed(2))
    exact = F.scaled_dot_product_attention(query, key, value)
    assert torch.equal(_attend(query, key, value), exact)
    rounded = _attend(query.bfloat16(), key.bfloat16(), value.bfloat16())
    # bfloat16 keeps 8 bits: 0.4 % of values of up to 3, a few times over.
    assert float((rounded.float() - exact).abs().max()) < 0.05


def test_the_compact_form_is_exported_and_quantized_and_still_answers_alike() -> None:
    data = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build(
            "small_vit",
            num_classes=10,
            image_size=(16, 16),
            mean=data.mean,
            std=data.std,
            options={**COMPACT, "flip_average": True},
        ).eval()
    card = ModelCard(
        family="vit", architecture="small_vit", architecture_options={**COMPACT, "flip_average": True},
        labels=tuple("0123456789"),
        preprocess=PreprocessSpec(16, 16), mean=data.mean, std=data.std, embedding_size=32, precision="fp32", parameters=1,
    )  # fmt: skip
    shown = data.images[TEST][:40]
    fp32 = onnx_bytes(model, card=card, opset=20)
    logits, embedding = OnnxModel(fp32, threads=1).run(shown)
    expected = torch_answers(model, shown)
    # Both sum float32 in another order; logits are of the order of 1.
    assert float(abs(logits - expected[0]).max()) < 1e-5
    assert float(abs(embedding - expected[1]).max()) < 1e-4
    int8 = quantize(fp32, data.images[TRAIN][:64], Recipe(("MatMul", "Gemm"), seven_bits=True))
    after, _ = OnnxModel(int8, threads=1).run(shown)
    # As in the tests of quantization: a few per cent of the logits' spread for each of a few layers.
    assert float(abs(after - logits).max()) < 0.35 * float(logits.std())


@pytest.mark.parametrize("architecture", ["small_vit", "small_resnet"])
def test_with_flip_average_an_image_and_its_mirror_image_are_answered_alike_by_the_mean(architecture: str) -> None:
    def make(flip_average: bool) -> models.Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return models.build(
                architecture, num_classes=5, image_size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3,
                options={"width": 16, "flip_average": flip_average},
            )  # fmt: skip

    pixels = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    plain, averaged = make(False).eval(), make(True).eval()
    with torch.inference_mode():
        by_hand = (plain(pixels)[0] + plain(pixels.flip(2))[0]) / 2
        assert torch.allclose(averaged(pixels)[0], by_hand, atol=1e-5)
        assert torch.allclose(averaged(pixels.flip(2))[0], by_hand, atol=1e-5)
    maps: list[torch.Tensor] = []
    layer = averaged.gradcam_layer()
    layer.module.register_forward_hook(lambda module, inputs, output: maps.append(layer.to_map(output)))
    averaged(pixels)
    assert maps[0].shape[0] == 4
    averaged.train()  # training sees one view
    torch.manual_seed(0)
    assert torch.equal(averaged(pixels)[0], plain.train()(pixels)[0])
