"""Gradio's internals: the queue, the data of events, and the state of each open page. They are used in this module alone.

The state of a page is copied from one page instead of computed for each. It describes every component. Gradio computes it when a page opens, which takes as long as a hundred updates of
an answer, one page after the other, and 250 kB of memory. All pages begin with the same state, and use replaces little
of it.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from gradio.state_holder import SessionState, StateHolder

from mlflow_finetune_plugin.internals import check_names

if TYPE_CHECKING:
    from fastapi import FastAPI
    from gradio import Blocks, EventData

check_names("gradio", SessionState, ("_update_value_in_config",))
check_names("gradio", StateHolder, ("set_blocks", "__getitem__"))


def event_data(event: EventData) -> Any:
    """Return what the browser sent with an event: any JSON value."""
    check_names("gradio", event, ("_data",))
    return event._data


def set_queue_interval(blocks: Blocks, seconds: float) -> None:
    """Let the queue of a page look for waiting events at this interval, in seconds."""
    check_names("gradio", blocks, ("_queue",))
    check_names("gradio", blocks._queue, ("sleep_when_free",))
    blocks._queue.sleep_when_free = seconds


def mark_launched(blocks: Blocks) -> None:
    """Let Gradio check file paths, as it does after a launch. A mounted page is never launched."""
    check_names("gradio", blocks, ("has_launched",))
    blocks.has_launched = True


def copy_page_states(app: FastAPI, blocks: Blocks) -> None:
    """Let each page of a mounted Gradio begin with a copy of one state."""
    from gradio.routes import App
    from starlette.routing import Mount

    states = PageStates()
    states.set_blocks(blocks)
    (mounted,) = (route.app for route in app.routes if isinstance(route, Mount) and isinstance(route.app, App))
    check_names("gradio", mounted, ("state_holder",))
    mounted.state_holder = states


class PageState(SessionState):  # type: ignore[misc]
    """The state of one page. Pages share the descriptions of components, so a change replaces a description."""

    def opened_again(self) -> PageState:
        """Return the state of a new page. Call this on the state of an unused page."""
        check_names("gradio", self, ("blocks_config", "config_values", "state_data", "_state_ttl"))
        other = copy(self)
        other.blocks_config = copy(self.blocks_config)
        other.config_values = dict(self.config_values)
        other.state_data, other._state_ttl = {}, {}
        return other

    def _update_value_in_config(self, key: int, value: Any) -> None:
        before = self.config_values.get(key, {})
        if "props" in before:
            self.config_values[key] = {**before, "props": {**before["props"], "value": value}}
        else:
            super()._update_value_in_config(key, value)


class PageStates(StateHolder):  # type: ignore[misc]
    """The states of all pages: Gradio's holder, which copies the state of new pages."""

    def set_blocks(self, blocks: Blocks) -> None:
        super().set_blocks(blocks)
        self._untouched = PageState(blocks)

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = self._untouched.opened_again()
        return super().__getitem__(session_id)
