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


def fingerprint(picture: Picture) -> int:
    """Return 128 bits that say where the picture becomes brighter from left to right and from top to bottom (dHash)."""
    from PIL.Image import Resampling

    grey = picture.pixels().convert("L")
    bits = 0
    for width, height, ahead in ((_SIDE + 1, _SIDE, 1), (_SIDE, _SIDE + 1, _SIDE)):
        levels = grey.resize((width, height), Resampling.LANCZOS).tobytes()
        starts = (row * width + column for row in range(_SIDE) for column in range(_SIDE))
        for start in starts:
            bits = bits << 1 | (levels[start + ahead] - levels[start] >= _STEP)
    return bits


class AlikePictures:
    """Remembers fingerprints, and finds one that is close to another: at most ``CLOSE_BITS`` bits differ."""

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
        closest = min(near, key=lambda other: (bits ^ other).bit_count(), default=None)
        if closest is None or (bits ^ closest).bit_count() > CLOSE_BITS:
            return None
        return self._names[closest]


def _blocks_of(bits: int) -> list[int]:
    size = _BITS // _BLOCKS
    return [bits >> (size * place) & ((1 << size) - 1) for place in range(_BLOCKS)]
