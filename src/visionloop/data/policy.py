"""What augmentation may do to a training image, as a value that lies beside the packed arrays; knows no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from visionloop.config import CHANGES, AugmentParams

Padding = Literal["reflect", "edge"]
Automatic = Literal["none", "randaugment", "trivialaugment", "augmix"]


class AugmentPolicy(BaseModel):
    """The strength of each random change; 0 or False means that it is never made. Meanings: `config.AugmentParams`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    horizontal_flip: Literal[False, True, "alternating"] = False
    vertical_flip: bool = False
    crop_padding_pixels: int = 0
    resized_crop: float = 0.0
    padding: Padding = "edge"
    rotation_degrees: float = 0.0
    scale: float = 0.0
    shear_degrees: float = 0.0
    automatic: Automatic = "none"
    randaugment_operations: int = 2
    randaugment_magnitude: int = 9
    augmix_severity: float = 3.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur_pixels: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixed_share: float = 1.0
    balance: Literal["none", "sampler", "variants"] = "none"
    balance_strength: float = 1.0

    @classmethod
    def from_params(cls, params: AugmentParams) -> AugmentPolicy:
        """The policy that the `augment` section of params.yaml describes."""
        return cls(**{name: getattr(params, name) for name in cls.model_fields})

    @property
    def changes(self) -> tuple[str, ...]:
        """What is done to single images, in the order of `config.CHANGES`, then the automatic policy's name."""
        active = tuple(name for name in CHANGES if getattr(self, name))
        return active if self.automatic == "none" else (*active, self.automatic)

    @property
    def mixes(self) -> tuple[str, ...]:
        """What is done to pairs of images: "mixup", "cutmix"."""
        return tuple(name for name in ("mixup", "cutmix") if getattr(self, name) and self.mixed_share)

    @property
    def is_identity(self) -> bool:
        """Whether no image is ever changed."""
        return not self.changes and not self.mixes

    def only(self, name: str) -> AugmentPolicy:
        """This policy with one of its `changes` or `mixes` left, at its strength."""
        kept = {key: getattr(self, key) for key in ("padding", "randaugment_magnitude", "augmix_severity")}
        if name == self.automatic:
            return AugmentPolicy(automatic=self.automatic, randaugment_operations=1, **kept)
        return AugmentPolicy(**{name: getattr(self, name)}, **kept)

    def words(self) -> str:
        """The active parts as one line, for titles.

        >>> AugmentPolicy(rotation_degrees=12, mixup=0.2).words()
        'rotation_degrees 12, mixup 0.2, padding edge'
        """
        parts = []
        for name in (*self.changes, *self.mixes):
            if name == "randaugment":
                parts.append(f"randaugment {self.randaugment_operations} x {self.randaugment_magnitude}")
            elif name == "augmix":
                parts.append(f"augmix {self.augmix_severity:g}")
            elif name == "trivialaugment" or getattr(self, name) is True:
                parts.append(name)
            elif name == "horizontal_flip":
                parts.append(f"{name} {self.horizontal_flip}")
            else:
                parts.append(f"{name} {getattr(self, name):g}")
        if self.crop_padding_pixels or self.resized_crop or self.rotation_degrees or self.scale or self.shear_degrees:
            parts.append(f"padding {self.padding}")
        return ", ".join(parts) or "no augmentation"
