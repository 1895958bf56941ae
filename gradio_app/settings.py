"""What the playground is told at its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PlaygroundSettings:
    """``endpoints``: base URLs that end in ``/v1``, the first one's models need no endpoint in their names.

    ``model``: the registered model whose votes are kept; None: votes are kept of no model, and the page says so.
    ``sides``: which models meet, as the endpoints call them; empty: challenger against champion, or against the base.
    ``keep_traces_days``: after which answers that nobody voted on are deleted from MLflow; None: never.
    """

    endpoints: tuple[str, ...]
    model: str | None = None
    sides: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 7860
    auth_file: Path | None = None
    user_header: str | None = None
    trusted_proxies: tuple[str, ...] = ()
    prompt_sets: tuple[Path, ...] = ()
    keep_traces_days: float | None = None
    max_prompt_chars: int = 20_000
    max_turns: int = 50
    max_streams_per_session: int = 4
    has_mcp: bool = False
