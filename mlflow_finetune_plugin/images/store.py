"""Pictures in a folder, each under the hash of its bytes, so that a picture of many rows is kept once."""

from __future__ import annotations

import os
from pathlib import Path

from mlflow_finetune_plugin.images.picture import Picture


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
            PictureFault: the file was changed into something that is no picture.
        """
        return Picture.of((self.folder / name).read_bytes())
