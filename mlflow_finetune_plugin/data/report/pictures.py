"""Count the pictures of the rows, and find those that look like another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mlflow_finetune_plugin.data.report.contents import MAX_LINES, DataFinding, PictureReport
from mlflow_finetune_plugin.data.tokens.batches import EncodedBatch
from mlflow_finetune_plugin.images import AlikePictures, fingerprint
from mlflow_finetune_plugin.images.store import Pictures
from mlflow_finetune_plugin.threads import idle_cores

LEAKED_PICTURES = "eval pictures in train"
COPIED_PICTURES = "pictures in train twice"

_SHOWN_DIGITS = 12


def picture_text(name: str, sizes: Mapping[str, tuple[int, int]]) -> str:
    """Return how a report names a picture: its size in pixels and the start of its hash."""
    width, height = sizes[name]
    return f"picture {width} x {height}, {name[:_SHOWN_DIGITS]}"


class PictureTally:
    """The pictures of the rows that are used, by side."""

    def __init__(self, store: Pictures, sizes: Mapping[str, tuple[int, int]], image_token_id: int | None) -> None:
        """Start to count.

        Args:
            store: Holds the pictures.
            sizes: Width and height of each picture, by name.
            image_token_id: The token that stands for a part of a picture; None for a base that takes none.
        """
        self._store, self._sizes, self._token = store, sizes, image_token_id
        self._trained: dict[str, str] = {}
        self._held_out: list[tuple[Sequence[str], str]] = []
        self._rows, self._pictures, self._tokens = 0, 0, 0

    def note(self, names: Sequence[str], position: str, *, is_held_out: bool) -> None:
        """Count the pictures of a row. Pictures of validation rows count as trained ones."""
        if not names:
            return
        self._rows += 1
        self._pictures += len(names)
        if is_held_out:
            self._held_out.append((names, position))
        else:
            for name in names:
                self._trained.setdefault(name, position)

    def note_tokens(self, encoded: EncodedBatch, is_used: np.ndarray) -> None:
        """Count the tokens that stand for pictures in the used rows of a batch; ``is_used`` is bool, (rows,)."""
        if self._token is None or not encoded.tokens.pictures:
            return
        in_rows = np.repeat(np.repeat(is_used, encoded.counts), encoded.tokens.lengths)
        self._tokens += int((encoded.tokens.ids[in_rows] == self._token).sum())

    def report(self) -> PictureReport | None:
        """Return the counts; None where no row has a picture."""
        if not self._rows:
            return None
        names = self._trained.keys() | self._distinct_held_out()
        widths, heights = zip(*(self._sizes[name] for name in names), strict=True)
        return PictureReport(
            rows=self._rows,
            pictures=self._pictures,
            distinct=len(names),
            smallest=(min(widths), min(heights)),
            largest=(max(widths), max(heights)),
            tokens=self._tokens,
        )

    def findings(self) -> list[DataFinding]:
        """Return the findings on pictures to train on that look alike, and on held-out rows with a picture like one of them."""
        if not self._trained:
            return []
        bits = self._fingerprints([*self._trained, *(self._distinct_held_out() - self._trained.keys())])
        trained, copies = AlikePictures(), dict[str, str]()
        for name in self._trained:
            if match := trained.find(bits[name]):
                copies[name] = str(match)
            trained.add(bits[name], name)
        alike = {name: str(match) for name in self._distinct_held_out() if (match := trained.find(bits[name]))}
        return [*self._copied(copies), *self._leaked(alike)]

    def _copied(self, copies: Mapping[str, str]) -> list[DataFinding]:
        """Return the finding on pictures that are not an earlier one's file, but look like it; ``copies`` names that one."""
        if not copies:
            return []
        name, match = next(iter(copies.items()))
        verb = "looks" if len(copies) == 1 else "look"
        return [
            DataFinding(
                COPIED_PICTURES,
                len(copies),
                f"of {len(self._trained):,} pictures to train on {verb} like an earlier one in another file, so what it shows "
                "weighs more",
                tuple(dict.fromkeys(self._trained[copy] for copy in [*copies][:MAX_LINES])),
                f"{self._trained[name]}: {picture_text(name, self._sizes)} | {self._trained[match]}: "
                f"{picture_text(match, self._sizes)}",
                "remove the rows with copies, unless they are meant to weigh more",
            )
        ]

    def _leaked(self, alike: Mapping[str, str]) -> list[DataFinding]:
        """Return the finding on held-out rows with a picture that looks like one to train on; ``alike`` names that one."""
        leaks = [(names, position) for names, position in self._held_out if not alike.keys().isdisjoint(names)]
        if not leaks:
            return []
        names_of_first, position = leaks[0]
        name = next(name for name in names_of_first if name in alike)
        held_out, match = picture_text(name, self._sizes), alike[name]
        verb = "shows" if len(leaks) == 1 else "show"
        return [
            DataFinding(
                LEAKED_PICTURES,
                len(leaks),
                f"of {len(self._held_out):,} held-out rows with pictures {verb} a picture that looks like one to train "
                "on, so the proof is too optimistic if new pictures are to be answered",
                tuple(dict.fromkeys(position for _, position in leaks[:MAX_LINES])),
                f"{position}: {held_out} | {self._trained[match]}: {picture_text(match, self._sizes)}",
                "remove them from one side, or keep the rows of a picture on one side: name the column of the picture in "
                "data.group",
            )
        ]

    def _distinct_held_out(self) -> set[str]:
        return {name for names, _ in self._held_out for name in names}

    def _fingerprints(self, names: Sequence[str]) -> dict[str, int]:
        """Return the fingerprints of pictures by their names. Decoding runs on all cores, because Pillow releases Python's lock."""
        with ThreadPoolExecutor(max(1, idle_cores().count)) as pool:
            return dict(zip(names, pool.map(lambda name: fingerprint(self._store.get(name)), names), strict=True))
