"""Gradio's state of each open page, copied from one page instead of computed for each.

The state describes every component. Gradio computes it when a page opens, which takes as long as a hundred updates of
an answer, one page after the other, and 250 kB of memory. All pages begin with the same state, and use replaces little
of it.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from gradio.state_holder import SessionState, StateHolder

if TYPE_CHECKING:
    from gradio import Blocks


class PageState(SessionState):  # type: ignore[misc]
    """The state of one page. Pages share the descriptions of components, so a change replaces a description."""

    def opened_again(self) -> PageState:
        """Return the state of a new page. Call this on the state of an unused page."""
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
