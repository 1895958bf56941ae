"""What Gradio keeps of each open page, made from one page's instead of anew.

A page's state tells what every component looks like. Gradio asks each component for it when a page opens, which takes as long
as a hundred answers' words, one page after the other, and keeps a quarter of a megabyte; yet all pages begin alike, and what
happens on a page replaces little of it.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from gradio.state_holder import SessionState, StateHolder

if TYPE_CHECKING:
    from gradio import Blocks


class PageState(SessionState):  # type: ignore[misc]
    """Of one page. What tells how a component looks is shared with other pages, so it is replaced and never changed."""

    def opened_again(self) -> PageState:
        """Another page, as this one was; to be asked of one on which nothing has happened."""
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
    """Of all pages: Gradio's own holder, whose pages are quickly opened."""

    def set_blocks(self, blocks: Blocks) -> None:
        super().set_blocks(blocks)
        self._untouched = PageState(blocks)

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = self._untouched.opened_again()
        return super().__getitem__(session_id)
