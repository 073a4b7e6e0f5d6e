"""visionloop.models.pruning: whole channels are gone, the rest is a plain network that loads, exports and answers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.torch_models import fresh, trained
from visionloop.card import ModelCard, Smaller
from visionloop.errors import ArtifactError, ConfigError
from visionloop.models import Classifier, build, load_model
from visionloop.models.pruning import fit_shapes, multiply_adds, pruned
from visionloop.paths import MODEL_TORCH

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
IMAGES = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def made(architecture: str, **options: int | bool) -> Classifier:
    torch.manual_seed(0)
    return build(
        architecture, num_classes=4, image_size=(32, 32), mean=MEAN, std=STD, options=options
    ).eval()  # fmt: skip


def sizes(classifier: Classifier) -> list[tuple[str, str]]:
    """Every layer as it describes itself."""
    return [(name, str(module)) for name, module in classifier.named_modules() if not list(module.children())]


def test_multiply_adds_are_those_counted_by_hand() -> None:
    """Stem 3 -> 8 on 32 x 32; a block 8 -> 8 of two convolutions there; a block 8 -> 16 with a skip on 16 x 16; the head."""
    stem, first = 3 * 8 * 9 * 32 * 32, 2 * 8 * 8 * 9 * 32 * 32
    second = (8 * 16 * 9 + 16 * 16 * 9 + 8 * 16) * 16 * 16
    expected = stem + first + second + 16 * 4
    assert multiply_adds(made("small_resnet", width=8, blocks=1, stages=2), (32, 32)) == expected
    # A second view costs twice in use, and is no part of the network.
    assert multiply_adds(made("small_resnet", width=8, blocks=1, stages=2, flip_average=True), (32, 32)) == 2 * expected - 64


@pytest.mark.parametrize(
    ("architecture", "options", "share"),
    [
        ("small_resnet", {"width": 16, "stages": 2, "flip_average": True}, 0.4),
        ("speed_net", {"width": 24, "flip_average": True}, 0.5),
        ("small_vit", {"width": 48, "depth": 2, "heads": 3, "mlp_ratio": 4}, 0.3),
        ("mobilenet_v3_small", {}, 0.5),
    ],
)
def test_a_pruned_network_is_smaller_and_plain(architecture: str, options: dict[str, int | bool], share: float) -> None:
    whole = made(architecture, **options)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    smaller = pruned(whole, share, (32, 32)).eval()
    least = 0.3 * (1 - share)
    assert least <= multiply_adds(smaller, (32, 32)) / multiply_adds(whole, (32, 32)) <= 1 - share
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items()), "it was changed itself"
    assert smaller.num_classes == 4
    trainable = {name for name, parameter in whole.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in smaller.named_parameters() if parameter.requires_grad} == trainable

    again = made(architecture, **options)
    fit_shapes(again, smaller.state_dict())
    again.load_state_dict(smaller.state_dict())
    assert sizes(again.eval()) == sizes(smaller)
    with torch.no_grad():
        for one, two in zip(again(IMAGES), smaller(IMAGES), strict=True):
            assert torch.equal(one, two)


def test_a_transformer_keeps_the_width_of_its_tokens_and_of_its_attention() -> None:
    smaller = pruned(made("small_vit", width=48, depth=2, heads=3, mlp_ratio=4), 0.3, (32, 32))
    for block in smaller.network.get_submodule("blocks").children():
        widen, qkv = block.get_submodule("widen"), block.get_submodule("qkv")
        assert isinstance(widen, nn.Linear) and isinstance(qkv, nn.Linear)
        assert widen.out_features < 4 * 48 and widen.out_features % 8 == 0
        assert (qkv.in_features, qkv.out_features) == (48, 3 * 48)
    assert smaller.embedding_size == 48


def test_the_weakest_channels_go() -> None:
    """Every second channel between a block's convolutions is made a thousandth: the eight that are left are the others."""
    whole = copy.deepcopy(trained("cnn")[0])
    block = whole.network.get_submodule("stages.0")
    norm = block.get_submodule("norm2")
    with torch.no_grad():
        for tensor in (block.get_parameter("conv1.weight"), norm.get_parameter("weight"), norm.get_parameter("bias")):
            tensor[::2] *= 1e-3
        block.get_parameter("conv2.weight")[:, ::2] *= 1e-3
    left = pruned(whole, 0.1, (16, 16)).network.get_submodule("stages.0.norm2")
    assert torch.equal(left.get_parameter("weight"), norm.get_parameter("weight")[1::2])
    assert torch.equal(left.get_buffer("running_var"), norm.get_buffer("running_var")[1::2])


def test_what_cannot_be_pruned_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"small_vit cannot be pruned by 90% of its multiply-adds; lower smaller\.share"):
        pruned(made("small_vit", width=48, depth=2, heads=3), 0.9, (32, 32))


def test_a_pruned_model_is_loaded_from_its_folder_by_what_its_card_says(tmp_path: Path) -> None:
    whole, card = fresh("cnn")
    smaller = pruned(whole, 0.3, (16, 16)).eval()
    torch.save(smaller.state_dict(), tmp_path / MODEL_TORCH)
    about = Smaller(
        by="pruning", architecture=card.architecture, architecture_options=card.architecture_options,
        parameters=card.parameters, multiply_adds=multiply_adds(whole, (16, 16)),
        multiply_adds_after=multiply_adds(smaller, (16, 16)), val_accuracy=0.9,
    )  # fmt: skip

    def write(about: Smaller | None) -> ModelCard:
        changed = card.model_copy(update={"smaller": about, "embedding_size": smaller.embedding_size})
        changed.with_files(tmp_path, (MODEL_TORCH,)).write(tmp_path)
        return changed

    write(about)
    loaded, found = load_model(tmp_path)
    assert found.smaller == about
    images = IMAGES[:, :16, :16]
    with torch.no_grad():
        assert torch.equal(loaded(images)[0], smaller(images)[0])
    write(None)  # without the card's word, other shapes are another network
    with pytest.raises(ArtifactError, match="does not fit the small_resnet of its card"):
        load_model(tmp_path)
