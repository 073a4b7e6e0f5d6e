"""What augmentation may do to a training image, as a value that lies beside the packed arrays; knows no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from visionloop.config import AugmentParams

Padding = Literal["reflect", "edge"]


class AugmentPolicy(BaseModel):
    """The strength of each random change; 0 or False means that it is never made. Meanings: `config.AugmentParams`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    horizontal_flip: bool = False
    crop_padding_pixels: int = 0
    padding: Padding = "edge"
    rotation_degrees: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    erasing: float = 0.0

    @classmethod
    def from_params(cls, params: AugmentParams) -> AugmentPolicy:
        """The policy that the `augment` section of params.yaml describes."""
        return cls(**{name: getattr(params, name) for name in cls.model_fields})

    @property
    def is_identity(self) -> bool:
        """Whether no image is ever changed."""
        return not any(getattr(self, name) for name in type(self).model_fields if name != "padding")
