"""The probes of a version as requests to an engine: with their pictures, which a reference keeps apart from the conversations."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from mlflow_finetune_plugin.images.store import PicturesInMemory
from mlflow_finetune_plugin.images.turns import for_request, pictures_of


class ProbeChats:
    """Writes requests for the probes of one reference.

    Args:
        reference: The content of ``reference.json``, which was checked (``versions.card.check_reference``).
    """

    def __init__(self, reference: Mapping[str, Any]) -> None:
        self._pictures = PicturesInMemory(reference.get("pictures") or {})
        self._url = lru_cache(maxsize=None)(self._data_url)

    def messages(self, chat: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the messages of a probe or of another conversation, with the data URLs of their pictures."""
        return [for_request(turn, self._url) for turn in chat["messages"]]

    def pictures(self, probes: Sequence[Mapping[str, Any]]) -> dict[str, list[list[str]]]:
        """Return the field of a request for completions that has the pictures of each probe. Empty if there is none."""
        urls = [[self._url(name) for name in pictures_of(probe.get("messages") or ())] for probe in probes]
        return {"pictures": urls} if any(urls) else {}

    def _data_url(self, name: str) -> str:
        png = base64.b64encode(self._pictures.get(name).png()).decode("ascii")
        return f"data:image/png;base64,{png}"
