"""Open the pictures of a row and store them, so that its conversation names each one by its hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlflow_finetune_plugin.data.conversations.conversion import Conversation
from mlflow_finetune_plugin.data.conversations.pictures import ALL_PICTURES
from mlflow_finetune_plugin.data.conversations.row_faults import UNSUPPORTED_FIELD, RowFault
from mlflow_finetune_plugin.images import PictureFault, PictureLinks, PictureStore, read_picture
from mlflow_finetune_plugin.images.turns import PICTURES, pictures_of

_LONGEST_PATH = 4096
_MOST_PATHS = 100_000


class RowPictures:
    """The pictures of a run. ``sizes`` has the width and height of each one in pixels, by its name."""

    def __init__(self, store: PictureStore, *, sees: bool, hosts: Sequence[str] = ()) -> None:
        """Start without pictures.

        Args:
            store: Where the pictures are written.
            sees: Whether the base takes pictures.
            hosts: The hosts from which links are fetched.
        """
        self._store, self._sees, self._links = store, sees, PictureLinks(hosts)
        self.sizes: dict[str, tuple[int, int]] = {}
        self._names: dict[tuple[str, Path], str] = {}

    def stored(self, conversations: Sequence[Conversation], folder: Path | None) -> list[Conversation]:
        """Return the conversations of a row with the names of their pictures instead of what the file has.

        Args:
            conversations: What the row became.
            folder: The folder of the data file, from which relative paths start; None for rows that may name no files.

        Raises:
            RowFault: the base takes no pictures, or a picture cannot be used.
        """
        if not any(pictures_of(conversation.messages) for conversation in conversations):
            return list(conversations)
        if not self._sees:
            raise RowFault(
                UNSUPPORTED_FIELD,
                f"pictures, and this base takes none; fix: use a base that does, or data.ignore: [{ALL_PICTURES}] trains "
                "without them",
            )
        return [self._stored(conversation, folder) for conversation in conversations]

    def _stored(self, conversation: Conversation, folder: Path | None) -> Conversation:
        messages = tuple(
            {**turn, PICTURES: [self._name(source, folder) for source in turn[PICTURES]]}
            if turn.get(PICTURES)
            else turn
            for turn in conversation.messages
        )
        return replace(conversation, messages=messages)

    def _name(self, source: object, folder: Path | None) -> str:
        """Return the name of a picture. A path is read once, because several rows may ask about one picture."""
        if not isinstance(source, str) or len(source) > _LONGEST_PATH or folder is None:
            return self._read(source, folder)
        if (source, folder) not in self._names:
            if len(self._names) >= _MOST_PATHS:
                self._names.clear()
            self._names[source, folder] = self._read(source, folder)
        return self._names[source, folder]

    def _read(self, source: object, folder: Path | None) -> str:
        try:
            picture = read_picture(source, folder=folder, links=self._links)
        except PictureFault as fault:
            raise RowFault(fault.reason, fault.detail) from fault
        self.sizes[picture.sha256] = (picture.width, picture.height)
        return self._store.add(picture)
