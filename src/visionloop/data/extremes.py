"""Each change of a policy alone and at its strongest: what the range check measures and the sheet of operations shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from visionloop.data import automatic
from visionloop.data.policy import AugmentPolicy

_TOP = 1 - 2**-53  # the largest number of [0, 1)

# For each change of `config.CHANGES` the numbers that its columns take (see `augmentation.columns`): one end, or two.
_ENDS: dict[str, tuple[dict[str, float], ...]] = {
    "horizontal_flip": ({"mirrored": 0},),
    "vertical_flip": ({"upended": 0},),
    "crop_padding_pixels": ({"shift_rows": 0, "shift_columns": 0}, {"shift_rows": _TOP, "shift_columns": _TOP}),
    "resized_crop": ({"crop_area": 0, "crop_aspect": 0}, {"crop_area": 0, "crop_aspect": _TOP}),
    "rotation_degrees": ({"angle": 0}, {"angle": _TOP}),
    "scale": ({"zoom": 0}, {"zoom": _TOP}),
    "shear_degrees": ({"shear": 0}, {"shear": _TOP}),
    "brightness": ({"brightness": 0}, {"brightness": _TOP}),
    "contrast": ({"contrast": 0}, {"contrast": _TOP}),
    "saturation": ({"saturation": 0}, {"saturation": _TOP}),
    "hue": ({"hue": 0}, {"hue": _TOP}),
    "blur_pixels": ({"blurred": 0, "sigma": _TOP},),
    "erasing": ({"erased": 0, "area": _TOP, "aspect": 0}, {"erased": 0, "area": _TOP, "aspect": _TOP}),
}


@dataclass(frozen=True)
class Extreme:
    """One change, and the pinned numbers that make it strongest."""

    name: str  # a key of the section augment, or "<automatic policy>_<operation>"
    setting: str  # in words, for the sheet
    policy: AugmentPolicy
    ends: tuple[Mapping[str, float], ...]  # one, or the low and the high one


def extremes(policy: AugmentPolicy) -> tuple[Extreme, ...]:
    """The changes of single images that the policy makes; of an automatic policy each of its operations."""
    found = []
    for name in policy.changes:
        alone = policy.only(name)
        if name in _ENDS:
            value = getattr(policy, name)
            found.append(Extreme(name, "" if value is True or value == "alternating" else f"{value:g}", alone, _ENDS[name]))
        else:
            found += [
                Extreme(f"{name}_{kind}", "", alone, _kind_ends(alone, index, kind in automatic.SIGNED))
                for index, kind in enumerate(automatic.kinds(policy))
                if kind != "identity"
            ]
    return tuple(found)


def _kind_ends(policy: AugmentPolicy, index: int, signed: bool) -> tuple[dict[str, float], ...]:
    """Every step takes one operation; AugMix's chains have one step each and hide the original."""
    kind = (index + 0.5) / len(automatic.kinds(policy))
    pinned = dict.fromkeys(automatic.columns(policy), _TOP)
    for column in pinned:
        if column.startswith("kind"):
            pinned[column] = kind
        elif column.startswith("depth"):
            pinned[column] = 0
    if not signed:
        return (pinned,)
    return {**pinned, **{column: 0.0 for column in pinned if column.startswith("sign")}}, pinned
