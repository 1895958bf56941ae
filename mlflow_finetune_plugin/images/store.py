"""Pictures in a folder, each under the hash of its bytes, so that a picture of many rows is kept once."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from mlflow_finetune_plugin.images.picture import Picture


class Pictures(Protocol):
    """Where the pictures are that conversations name."""

    def get(self, name: str) -> Picture:
        """Return a picture by the SHA-256 of its bytes, in hex."""


class PicturesInMemory:
    """A few pictures, which travel as base64 text within a JSON file."""

    def __init__(self, encoded: Mapping[str, str]) -> None:
        self._encoded = encoded

    @staticmethod
    def encoded(picture: Picture) -> str:
        """Return a picture as the text that this class reads."""
        return base64.b64encode(picture.content).decode("ascii")

    def get(self, name: str) -> Picture:
        """Return a picture. Raises KeyError where there is none with this name."""
        return Picture.of(base64.b64decode(self._encoded[name]))


class PictureStore:
    """A folder of pictures. What it returns was checked when it was added, and is checked again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, picture: Picture) -> str:
        """Write the picture unless it is there, and return its name: its SHA-256 in hex."""
        path = self.folder / picture.sha256
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            part.write_bytes(picture.content)
            os.replace(part, path)
        return picture.sha256

    def get(self, name: str) -> Picture:
        """Return a picture of the folder.

        Raises:
            FileNotFoundError: there is none with this name.
            PictureFault: the file was changed, and is not a picture now.
        """
        return Picture.of((self.folder / name).read_bytes())
