"""Find pictures that look alike, whatever their size, format or compression."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

from mlflow_finetune_plugin.images.picture import Picture

_SIDE = 8
_BITS = 2 * _SIDE * _SIDE
_BLOCKS = 8
CLOSE_BITS = _BLOCKS - 1
"""How many of 128 bits of alike pictures differ at most. So few leave one of eight blocks as it is, which finds them without comparing
each picture with each. Copies in another size or compression differed in at most 3 bits, other pictures in 14 and more."""
_STEP = 2
"""From how many of 256 levels of brightness on a step counts: flat areas are noise after compression."""
_PATCHES = 4
_COLOUR_BYTES = 3 * _PATCHES * _PATCHES
_CLOSE_LEVELS = 12
"""How many of 256 levels each colour of each patch of alike pictures differs at most, because a red circle and a blue one brighten in the
same directions. Of 100 drawn shapes, copies in another size or compression differed in at most 11 levels, other shapes in 14 and more."""


def fingerprint(picture: Picture) -> int:
    """Return 512 bits that compare the looks of pictures.

    The highest 128 say where the picture becomes brighter from left to right and from top to bottom (dHash). The others are the colours
    of 4 x 4 patches, 8 bits each.
    """
    from PIL.Image import Resampling

    pixels = picture.pixels()
    grey = pixels.convert("L")
    bits = 0
    for width, height, ahead in ((_SIDE + 1, _SIDE, 1), (_SIDE, _SIDE + 1, _SIDE)):
        levels = grey.resize((width, height), Resampling.LANCZOS).tobytes()
        starts = (row * width + column for row in range(_SIDE) for column in range(_SIDE))
        for start in starts:
            bits = bits << 1 | (levels[start + ahead] - levels[start] >= _STEP)
    colours = pixels.resize((_PATCHES, _PATCHES), Resampling.LANCZOS).tobytes()
    return bits << 8 * _COLOUR_BYTES | int.from_bytes(colours, "big")


class AlikePictures:
    """Remembers fingerprints, and finds one that is close to another: at most ``CLOSE_BITS`` bits differ, and no colour much."""

    def __init__(self) -> None:
        self._names: dict[int, Hashable] = {}
        self._blocks: list[defaultdict[int, list[int]]] = [defaultdict(list) for _ in range(_BLOCKS)]

    def add(self, bits: int, name: Hashable) -> None:
        """Remember a fingerprint under a name. The first name of equal fingerprints stays."""
        if bits in self._names:
            return
        self._names[bits] = name
        for block, table in zip(_blocks_of(bits), self._blocks, strict=True):
            table[block].append(bits)

    def find(self, bits: int) -> Hashable | None:
        """Return the name of a remembered picture that looks like this one, the closest first; None if there is none."""
        near = {other for block, table in zip(_blocks_of(bits), self._blocks, strict=True) for other in table[block]}
        alike = [other for other in near if _steps(bits, other) <= CLOSE_BITS and _match_in_colour(bits, other)]
        closest = min(alike, key=lambda other: _steps(bits, other), default=None)
        return None if closest is None else self._names[closest]


def _steps(bits: int, other: int) -> int:
    return ((bits ^ other) >> 8 * _COLOUR_BYTES).bit_count()


def _match_in_colour(bits: int, other: int) -> bool:
    colours = zip(_colours_of(bits), _colours_of(other), strict=True)
    return all(abs(mine - its) <= _CLOSE_LEVELS for mine, its in colours)


def _colours_of(bits: int) -> bytes:
    return (bits & ((1 << 8 * _COLOUR_BYTES) - 1)).to_bytes(_COLOUR_BYTES, "big")


def _blocks_of(bits: int) -> list[int]:
    steps, size = bits >> 8 * _COLOUR_BYTES, _BITS // _BLOCKS
    return [steps >> (size * place) & ((1 << size) - 1) for place in range(_BLOCKS)]
