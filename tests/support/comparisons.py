"""A playground without a page, for tests of its sessions and streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gradio_app.chat.session import ComparisonTurn, Prompt, Session
from gradio_app.playground import Playground
from gradio_app.settings import PlaygroundSettings

T = TypeVar("T")


def settings(endpoint: str, **more) -> PlaygroundSettings:
    return PlaygroundSettings((endpoint,), **more)


def run(made: Playground, act: Callable[[Playground], Awaitable[T]]) -> T:
    """``act`` on an event loop of its own; the playground is closed after it."""

    async def all_of_it() -> T:
        try:
            return await act(made)
        finally:
            await made.close()

    return asyncio.run(all_of_it())


async def spoken(playground: Playground, session: Session, prompt: str = "hello") -> ComparisonTurn:
    """The turn, when all is said."""
    async for _ in playground.streams.ask(session, Prompt(prompt)):
        continue
    assert session.last is not None
    return session.last
