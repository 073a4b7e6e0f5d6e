"""What a process does with the memory that it frees."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST = 2**31 - 1  # an int


def keep_freed_memory(most: int, largest_piece: int) -> None:
    """Keep up to `most` freed bytes in this process, of pieces below `largest_piece` bytes; elsewhere than in glibc nothing.

    By itself, glibc gives large pieces back to the system at once, and they come again page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, min(most, _LARGEST))
        mallopt(_MMAP_THRESHOLD, min(largest_piece, _LARGEST))
