"""Changes of pixels in integers only, so that every device and every number of threads gives the same bits.

Integer addition, multiplication and shifts have one right answer; float sums do not (their order, fused multiply-add and the
sine of a GPU differ). What needs a float (an angle's sine, a Gaussian) is worked out on the host and rounded to an integer
before it meets a pixel. Nothing here overflows 32 bits, so nothing hangs on how a device wraps.

An image is [H, W] int32 words, a pixel a word: red + green * 2^8 + blue * 2^16. One gather moves all three channels, and red
and blue are weighed together in one multiplication, because weights that sum to 2^7 keep both below 2^31.

Does not cover: drawing of random numbers; every parameter comes as a numpy array with one entry per image.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from visionloop.data.policy import Padding

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

WEIGHT_BITS = 7
WHOLE = 1 << WEIGHT_BITS  # the sum of weights
_HALF = WHOLE // 2
_RED_BLUE = 0x00FF00FF
_POSITION_BITS = 12
_ONE = 1 << 16  # factors of colours have 16 bits behind the point
_GRAY = (77, 150, 29)  # ITU-R BT.601 in 1/256
ERASED = 0x727272  # gray 114, as `preprocess` pads a letterbox

# The colour space of NTSC: luma and two axes of colour; gray has 0 on both. Rotating these two is how NVIDIA DALI and the
# first colour televisions turn a hue.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def to_words(images: Tensor) -> Tensor:
    """Words int32 [N, H, W] of uint8 [N, H, W, 3]."""
    return F.pad(images, (0, 1)).view(torch.int32)[..., 0]


def to_bytes(words: Tensor) -> Tensor:
    """Images uint8 [N, H, W, 3] of words int32 [N, H, W]."""
    return words.contiguous().unsqueeze(-1).view(torch.uint8)[..., :3].contiguous()


def move(words: Tensor, rows: Integers, columns: Integers) -> Tensor:
    """Pick pixel (rows[n, y], columns[n, x]) for (y, x); both inside the image."""
    _, height, width = words.shape
    flat = _starts(words) + (_on(words, rows) * width)[:, :, None] + _on(words, columns)[:, None, :]
    return _pick(words, flat.reshape(-1)).view(len(words), height, width)


def fold(index: Integers, size: int, padding: Padding) -> Integers:
    """Positions brought inside 0..size-1: "edge" repeats the border, "reflect" mirrors at its centre, as `numpy.pad`."""
    if padding == "reflect" and size > 1:
        period = 2 * (size - 1)
        index = index % period
        return np.where(index < size, index, period - index)
    return np.clip(index, 0, size - 1)


def warp(words: Tensor, matrices: Floats, padding: Padding) -> Tensor:
    """Show at each place the pixel that `matrices` [N, 2, 3] name, blended from its four neighbours.

    A matrix maps (x, y) of the result to (x, y) of the input, both in pixels from the image's centre. Places are rounded to
    1/128 pixel, so a shift by whole pixels and a mirror image are exact. "reflect" mirrors once; beyond that the border is
    repeated.
    """
    _, height, width = words.shape
    horizontal = (2 * np.arange(width) - (width - 1)) / 2
    vertical = (2 * np.arange(height) - (height - 1)) / 2
    half_step = 0.5 / WHOLE  # what is cut off below is rounded by it
    places = []
    for axis, size in ((0, width), (1, height)):
        across = matrices[:, axis, 0, None] * horizontal
        down = matrices[:, axis, 1, None] * vertical + matrices[:, axis, 2, None] + ((size - 1) / 2 + half_step)
        fixed = [np.rint(np.clip(part, -(2**17), 2**17) * 2**_POSITION_BITS).astype(np.int64) for part in (across, down)]
        places.append(_on(words, fixed[0])[:, None, :] + _on(words, fixed[1])[:, :, None])
    x, y = places
    right, low = ((place >> (_POSITION_BITS - WEIGHT_BITS)).bitwise_and_(WHOLE - 1) for place in (x, y))
    x, y = (place.bitwise_right_shift_(_POSITION_BITS) for place in (x, y))
    columns = [_fold_on_device(x, width, padding), _fold_on_device(x + 1, width, padding)]
    lines = []
    for row in (y, y + 1):
        start = _fold_on_device(row, height, padding).mul_(width).add_(_starts(words))
        first, second = (_pick(words, (start + column).view(-1)).view_as(start) for column in columns)
        lines.append(_between(first, second, right))
    return _between(lines[0], lines[1], low)


def weigh(parts: list[Tensor], weights: list[Tensor]) -> Tensor:
    """The sum of words, each times its weight; the weights of an image sum to `WHOLE`. They broadcast against the words."""
    red_blue = (parts[0] & _RED_BLUE).mul_(weights[0]).add_(_HALF | _HALF << 16)
    green = (parts[0] >> 8).bitwise_and_(0xFF).mul_(weights[0]).add_(_HALF)
    for words, weight in zip(parts[1:], weights[1:], strict=True):
        red_blue.addcmul_(words & _RED_BLUE, weight)
        green.addcmul_((words >> 8).bitwise_and_(0xFF), weight)
    # Seven bits down and eight up again: green lands above red, its fraction and what is left of others are masked away.
    red_blue.bitwise_right_shift_(WEIGHT_BITS).bitwise_and_(_RED_BLUE)
    return green.bitwise_left_shift_(8 - WEIGHT_BITS).bitwise_and_(0xFF00).bitwise_or_(red_blue)


def whole_weights(shares: Floats) -> Integers:
    """Shares [N, K] that sum to 1 as integers that sum to `WHOLE`."""
    edges = np.rint(np.cumsum(shares, axis=1) * WHOLE).astype(np.int64)
    edges[:, -1] = WHOLE
    edges = np.clip(edges, 0, WHOLE)
    edges[:, 1:] -= edges[:, :-1].copy()
    return edges


def blur(words: Tensor, sigma: Floats, padding: Padding) -> Tensor:
    """Gaussian blur of standard deviation `sigma` pixels, rows then columns; a kernel reaches three deviations."""
    _, height, width = words.shape
    reach = max(1, int(np.ceil(3 * sigma.max(initial=0))))
    away = np.arange(reach + 1)
    kernel = np.exp(-0.5 * (away / np.maximum(sigma, 1e-6)[:, None]) ** 2)
    kernel /= kernel[:, :1] + 2 * kernel[:, 1:].sum(axis=1, keepdims=True)
    fixed = np.rint(kernel * WHOLE).astype(np.int64)
    fixed[:, 0] = WHOLE - 2 * fixed[:, 1:].sum(axis=1)
    taps = [_on(words, fixed[:, abs(step)])[:, None, None] for step in range(-reach, reach + 1) if fixed[:, abs(step)].any()]
    reach = len(taps) // 2
    for axis, size in ((2, width), (1, height)):
        inside = fold(np.arange(-reach, size + reach), size, padding)
        wide = words.index_select(axis, _on(words, inside))
        words = weigh([wide.narrow(axis, start, size) for start in range(len(taps))], taps)
    return words


def colour(words: Tensor, brightness: Floats, contrast: Floats, saturation: Floats, hue: Floats) -> Tensor:
    """One linear change of colours per image: factors for brightness, contrast and saturation, and a turn of the hue.

    Brightness multiplies; contrast stretches around the mean gray of the image; saturation stretches away from gray and hue
    (in full turns) rotates around it, both in YIQ. All are one matrix and one rounding, clipped at the end.
    """
    _, height, width = words.shape
    gain = np.rint(brightness * contrast * _ONE).astype(np.int64)
    shift: Tensor | int = _ONE // 2
    if (contrast != 1).any():
        planes = _planes(words)
        total = sum(plane.sum(dim=(1, 2)) * weight for plane, weight in zip(planes, _GRAY, strict=True))
        kept = np.rint(brightness * (1 - contrast) * _ONE).astype(np.int64)
        mean = torch.div(total * _on(words, kept, np.int64), 256 * height * width, rounding_mode="floor")
        shift = (mean + _ONE // 2).to(torch.int32)[:, None, None]
    if (saturation == 1).all() and (hue == 0).all():
        factor = _on(words, gain)[:, None, None]
        return _joined([(plane * factor).add_(shift).bitwise_right_shift_(16) for plane in _planes(words)])
    turn = hue * 2 * np.pi
    inner = np.zeros((len(words), 3, 3))
    inner[:, 0, 0] = 1
    inner[:, 1, 1] = inner[:, 2, 2] = saturation * np.cos(turn)
    inner[:, 1, 2], inner[:, 2, 1] = -saturation * np.sin(turn), saturation * np.sin(turn)
    matrix = np.rint(np.linalg.inv(_YIQ) @ inner @ _YIQ * (brightness * contrast)[:, None, None] * _ONE).astype(np.int64)
    for channel in range(3):  # each row sums to the gain, so that gray stays exactly gray
        matrix[:, channel, channel] += gain - matrix[:, channel].sum(axis=1)
    factors = _on(words, matrix)[..., None, None]
    planes = _planes(words)
    mixed = []
    for row in range(3):
        value = planes[0] * factors[:, row, 0]
        for column in (1, 2):
            value.addcmul_(planes[column], factors[:, row, column])
        mixed.append(value.add_(shift).bitwise_right_shift_(16))
    return _joined(mixed)


def sharpen(words: Tensor, factor: Floats) -> Tensor:
    """Away from a smoothed copy (above 1) or towards it (below 1), as Pillow's `ImageEnhance.Sharpness`.

    The copy is the mean of 3 x 3 pixels with weight 5 for the middle one, rounded; pixels of the border stay.
    """
    _, height, width = words.shape
    if min(height, width) < 3:
        return words
    strength = _on(words, np.rint(factor * _ONE).astype(np.int64))[:, None, None]
    result = []
    for plane in _planes(words):
        lines = plane[:, :-2] + plane[:, 1:-1] + plane[:, 2:]
        middle = plane[:, 1:-1, 1:-1]
        smooth = torch.div(
            lines[:, :, :-2] + lines[:, :, 1:-1] + lines[:, :, 2:] + middle * 4 + 6, 13, rounding_mode="floor"
        )
        changed = plane.clone()
        changed[:, 1:-1, 1:-1] = (smooth * _ONE + (middle - smooth) * strength + _ONE // 2) >> 16
        result.append(changed)
    return _joined(result)


def look_up(words: Tensor, tables: Tensor) -> Tensor:
    """Exchange each value by `tables` int32 [N, 3, 256]."""
    start = torch.arange(len(words), device=words.device, dtype=torch.int32)[:, None, None] * 768
    flat = tables.to(torch.int32).reshape(-1)
    planes = [
        flat.index_select(0, (plane + (start + 256 * channel)).view(-1)).view_as(words)
        for channel, plane in enumerate(_planes(words))
    ]
    return _joined(planes)


def posterize_tables(words: Tensor, bits: Integers) -> Tensor:
    """Keep the highest `bits` of each value."""
    masks = 256 - 2 ** (8 - bits)
    return (_values(words) & _on(words, masks)[:, None, None]).expand(-1, 3, -1)


def solarize_tables(words: Tensor, threshold: Integers) -> Tensor:
    """Invert values of at least `threshold`."""
    values = _values(words)
    return torch.where(values >= _on(words, threshold)[:, None, None], 255 - values, values).expand(-1, 3, -1)


def autocontrast_tables(words: Tensor) -> Tensor:
    """Stretch each channel to 0..255, as Pillow's `ImageOps.autocontrast` without a cut-off."""
    values = _values(words)
    counts = _histograms(words)
    present = counts > 0
    low = torch.where(present, values, 255).amin(dim=2, keepdim=True)
    high = torch.where(present, values, 0).amax(dim=2, keepdim=True)
    spread = high - low
    stretched = torch.div((values - low) * 255, spread.clamp(min=1), rounding_mode="floor").clamp(0, 255)
    return torch.where(spread > 0, stretched, values)


def equalize_tables(words: Tensor) -> Tensor:
    """Give each channel a flat histogram, as Pillow's `ImageOps.equalize`."""
    values = _values(words)
    counts = _histograms(words)
    last = torch.where(counts > 0, values, 0).amax(dim=2, keepdim=True)
    step = torch.div(counts.sum(dim=2, keepdim=True) - counts.gather(2, last.long()), 255, rounding_mode="floor")
    before = counts.cumsum(dim=2) - counts
    table = torch.div(before + torch.div(step, 2, rounding_mode="floor"), step.clamp(min=1), rounding_mode="floor")
    return torch.where(step > 0, table.clamp(0, 255), values)


def inside(words: Tensor, top: Integers, left: Integers, tall: Integers, wide: Integers) -> Tensor:
    """Whether a pixel lies in the image's rectangle, bool [N, H, W]; one of height or width 0 holds none."""
    _, height, width = words.shape
    rows, columns = np.arange(height)[None], np.arange(width)[None]
    in_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    return _on(words, in_rows, np.bool_)[:, :, None] & _on(words, in_columns, np.bool_)[:, None, :]


def _on(words: Tensor, values: npt.NDArray[np.generic], dtype: type[np.generic] = np.int32) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=dtype)).to(words.device)


def _starts(words: Tensor) -> Tensor:
    count, height, width = words.shape
    return (torch.arange(count, device=words.device, dtype=torch.int32) * (height * width))[:, None, None]


def _pick(words: Tensor, flat: Tensor) -> Tensor:
    return words.reshape(-1).index_select(0, flat)


def _fold_on_device(index: Tensor, size: int, padding: Padding) -> Tensor:
    if padding == "reflect":
        index = (size - 1) - ((size - 1) - index.abs()).abs()
    return index.clamp(0, size - 1)


def _between(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    return weigh([first, second], [WHOLE - weight, weight])


def _planes(words: Tensor) -> list[Tensor]:
    """Red, green, blue as int32 [N, H, W]."""
    return [words & 0xFF, (words >> 8).bitwise_and_(0xFF), words >> 16]


def _joined(planes: list[Tensor]) -> Tensor:
    red, green, blue = (plane.clamp(0, 255) for plane in planes)
    return green.bitwise_left_shift_(8).bitwise_or_(red).bitwise_or_(blue.bitwise_left_shift_(16))


def _values(words: Tensor) -> Tensor:
    return torch.arange(256, device=words.device, dtype=torch.int32)[None, None]


def _histograms(words: Tensor) -> Tensor:
    """How often each value occurs, int64 [N, 3, 256]."""
    start = torch.arange(len(words), device=words.device, dtype=torch.int32)[:, None, None] * 768
    flat = torch.cat([(plane + (start + 256 * channel)).view(-1) for channel, plane in enumerate(_planes(words))])
    return torch.bincount(flat, minlength=768 * len(words)).view(len(words), 3, 256)
