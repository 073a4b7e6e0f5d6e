"""Starting weights from a local file or from torchvision, fitted to a network that may have other classes.

Files are read by `tensors`: tensors, never code. Does not cover the project's own model folders, whose hash is checked by
`load_model`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torchvision
from torch import Tensor
from torchvision.models.vision_transformer import interpolate_embeddings

from visionloop.errors import ArtifactError, ConfigError
from visionloop.models.network import Network
from visionloop.models.tensors import read_tensors
from visionloop.models.torchvision_networks import TorchvisionNetwork

TORCHVISION = "torchvision"
# Below this share of fitting numbers the file is taken to be of another architecture.
_LEAST_SHARE = 0.5


def load_weights(architecture: str, network: Network, weights: str, sha256: str | None = None) -> tuple[str, ...]:
    """Load `weights` ("torchvision" or the path of a file) into `network` and say in sentences what was left fresh.

    The head is left as it was initialised where the class count differs; a ViT's positions are interpolated. A file must
    have the hash `sha256`, if one is given; torchvision's own downloads carry theirs in their names.

    Raises:
        ConfigError: torchvision has no weights for this architecture.
        ArtifactError: the file is missing or damaged, has another hash, holds anything but tensors, or is of another
            architecture; or a download fails.
    """
    state = _download(architecture, network) if weights == TORCHVISION else _read(Path(weights), sha256)
    state = _as_network(network, state)
    own = network.state_dict()
    if isinstance(network, TorchvisionNetwork) and architecture.startswith("vit_"):
        state = _interpolate(network, state)
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    share = sum(own[key].numel() for key in fitting) / max(1, sum(value.numel() for value in own.values()))
    if share < _LEAST_SHARE:
        raise ArtifactError(
            f"The weights {weights} are not of {architecture}: only {share:.0%} of its numbers have a tensor of the same "
            "name and shape there; name the architecture that they were trained with, or set weights to null."
        )
    network.load_state_dict(fitting, strict=False)
    notes = [f"{len(fitting)} of {len(own)} tensors come from {weights}"]
    fresh = [key for key in own if key not in fitting]
    if any(key.startswith("head.") for key in fresh):
        had = state["head.weight"].shape[0] if "head.weight" in state else 0
        notes.append(f"the head is fresh: the weights have {had} classes, the data {network.head.out_features}")
    others = [key for key in fresh if not key.startswith("head.")]
    if others:
        notes.append(f"fresh too, because missing there or of another shape: {_some(others)}")
    ignored = [key for key in state if key not in own]
    if ignored:
        notes.append(f"not used of the file: {_some(ignored)}")
    return tuple(notes)


def read_file(path: Path, sha256: str | None) -> bytes:
    """The bytes of a weights file, after its hash was compared with `sha256`, if one is given.

    Raises:
        ArtifactError: the file is missing, cannot be read, or has another hash.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"The weights file {path} does not exist; give its path from the project's folder.") from None
    except OSError as error:
        raise ArtifactError(f"The weights file {path} cannot be read ({error.strerror}).") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise ArtifactError(
            f"The weights file {path} has the sha256 {found}, and weights_sha256 names {sha256}; fetch the file again, or "
            "correct weights_sha256 if you trust this one."
        )
    return data


def _read(path: Path, sha256: str | None) -> dict[str, Tensor]:
    value = read_tensors(read_file(path, sha256), f"The weights file {path}")
    for key in ("state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping):
        raise ArtifactError(f"The weights file {path} holds a {type(value).__name__}, no state dict of tensors.")
    return {str(key): tensor for key, tensor in value.items() if isinstance(tensor, Tensor)}


def check_weights(architecture: str, network: Network, weights: str, sha256: str | None) -> None:
    """See that `weights` are there, without loading or downloading them.

    Raises:
        ConfigError: torchvision has no weights for this architecture.
        ArtifactError: see `read_file`.
    """
    if weights != TORCHVISION:
        read_file(Path(weights), sha256)
    elif not isinstance(network, TorchvisionNetwork):
        raise ConfigError(f"torchvision has no weights for {architecture}; set its weights to null or to a local file.")


def _download(architecture: str, network: Network) -> dict[str, Tensor]:
    check_weights(architecture, network, TORCHVISION, None)
    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise ArtifactError(
            f"The weights of {architecture} cannot be downloaded from {weights.url} ({error}); get online, or fetch the "
            "file elsewhere and give its local path as the weights."
        ) from error
    return state


def _as_network(network: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of this project (`network.`) or of torchvision to the names of `Network`."""
    if any(key.startswith("network.") for key in state):
        return {key.removeprefix("network."): value for key, value in state.items()}
    if isinstance(network, TorchvisionNetwork) and not any(key.startswith("body.") for key in state):
        head = network.head_name + "."
        return {
            ("head." + key.removeprefix(head)) if key.startswith(head) else "body." + key: value
            for key, value in state.items()
        }
    return dict(state)


def _interpolate(network: TorchvisionNetwork, state: dict[str, Tensor]) -> dict[str, Tensor]:
    key = "body.encoder.pos_embedding"
    body = network.body
    if key not in state or state[key].shape == network.state_dict()[key].shape:
        return state
    named = {"encoder.pos_embedding": state[key]}
    resized = interpolate_embeddings(int(body.image_size), int(body.patch_size), named)  # type: ignore[arg-type]
    return {**state, key: resized["encoder.pos_embedding"]}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
