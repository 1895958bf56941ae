"""The Runs tab: versions, one or two of them in detail, promotion, rollback and the history of moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import gradio as gr
from gradio.events import api

from gradio_app.html_parts import note_html
from gradio_app.registry_client import ask_mlflow, registry_client
from gradio_app.versions.cards import MOST_VERSIONS, VersionCard, Versions, list_versions, read_card
from gradio_app.versions.html import card_html, comparison_html, versions_table
from gradio_app.versions.moves_html import history_html, progress_html, verdict_html
from gradio_app.versions.promotion import Promotions
from gradio_app.versions.rollback import (
    PlannedPromotion,
    PlannedRollback,
    carry_out_rollback,
    plan_promotion,
    plan_rollback,
)
from gradio_app.web.gradio_internals import event_data
from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.promotion.moves.audit import Record, history
from mlflow_finetune_plugin.store.names import CANARY, CHALLENGER, INTENT_TAG, PREVIOUS
from mlflow_finetune_plugin.store.registered_model import read_model, registry_faults

_AT_ONCE = 50
_POLL_S = 0.25
_PICK_IN_TABLE = "window.mfPickVersion(element, trigger)"
_NOT_ALLOWED = "You cannot promote or roll back: your user has no may_promote in the auth file. Ask the person who runs this playground."


class RunsPage:
    """The versions of one registered model.

    The server checks ``may_promote`` for every request that moves an alias, whatever the page displays.
    """

    def __init__(
        self, model: str, may_promote: Callable[[gr.Request], bool], promotions: Promotions | None = None
    ) -> None:
        self.model = model
        self._may_promote = may_promote
        self._promotions = promotions if promotions is not None else Promotions()

    def build(self, tab: gr.Tab) -> None:
        """Build the tab's components within the tab. Nothing is read before the tab is selected."""
        limit, listed = gr.State(_AT_ONCE), gr.State(None)
        planned_promotion, planned_rollback = gr.State(None), gr.State(None)
        table = gr.HTML(apply_default_css=False, js_on_load=_PICK_IN_TABLE, min_height=120)
        with gr.Row():
            picked = gr.Dropdown([], label="Version", interactive=True)
            other = gr.Dropdown([("none", "")], value="", label="Compare with", interactive=True)
            refresh = gr.Button("Refresh", size="sm", scale=0, min_width=110)
            older = gr.Button("Show older", size="sm", scale=0, min_width=110, visible=False)
        card = gr.HTML(apply_default_css=False)
        gr.Markdown("### Promote or roll back")
        rights = gr.HTML(apply_default_css=False)
        with gr.Row():
            promote = gr.Button("Promote this version …", variant="primary", interactive=False)
            rollback = gr.Button("Roll back …", interactive=False)
        question = gr.HTML(apply_default_css=False)
        reason = gr.Textbox(label="Reason (recorded)", max_length=500, visible=False)
        with gr.Row():
            yes_promote = gr.Button("Yes, let the gate judge it", variant="primary", visible=False)
            yes_rollback = gr.Button("Yes, roll back", variant="stop", visible=False)
            no = gr.Button("Cancel", visible=False)
        verdict = gr.HTML(apply_default_css=False)
        gr.Markdown("### History of moves")
        moves = gr.HTML(apply_default_css=False)

        asking = [question, reason, yes_promote, yes_rollback, no, planned_promotion, planned_rollback]
        loaded = [listed, table, picked, other, older, rights, promote, rollback, moves]
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "minimal"}
        quiet: dict[str, Any] = {**private, "show_progress": "hidden"}
        reload: dict[str, Any] = {"fn": self._load, "inputs": [limit, picked, other], "outputs": loaded, **private}
        follow: dict[str, Any] = {"fn": self._follow, "outputs": [verdict], **quiet}
        close: dict[str, Any] = {"fn": self._close, "outputs": asking, **quiet}

        # a version that a person picks while the list is read stays picked: what is shown is read from the selection after it
        listing = [listed, picked, other]
        show: dict[str, Any] = {"fn": self._show, "inputs": listing, "outputs": [table, card], **private}
        tab.select(**reload).then(**show).then(**follow)
        refresh.click(**reload).then(**show)
        older.click(lambda listing: listing + _AT_ONCE, limit, limit, **quiet).then(**reload).then(**show)
        picked.input(**show).then(**close)
        other.input(**show)
        table.click(self._pick, listed, picked, **quiet).then(**show).then(**close)
        promote.click(self._ask_promotion, picked, [*asking, verdict], **private)
        rollback.click(self._ask_rollback, None, [*asking, verdict], **private)
        no.click(**close)
        yes_promote.click(self._promote, planned_promotion, [verdict, *asking], **quiet).then(**reload).then(**show)
        yes_rollback.click(self._roll_back, [planned_rollback, reason], [verdict, *asking], **private).then(
            **reload
        ).then(**show)
        api(self.versions, api_name="versions", api_description="Registered versions, newest first.")
        api(self.history, api_name="history", api_description="Moves of the model's aliases, newest first.")

    async def versions(self, limit: int = _AT_ONCE) -> list[dict[str, Any]]:
        """Return the fields of ``versions.cards.VersionCard``, of at most 500 versions."""
        listed = await self._read_or_report(self._list, max(1, int(limit)))
        return [version.to_json() for version in listed.rows]

    async def history(self) -> list[dict[str, Any]]:
        """Return the fields of ``promotion.moves.audit.Record``."""
        records, _ = await self._read_or_report(self._history)
        return [record.to_json() for record in records]

    async def _read_or_report(self, read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await ask_mlflow(read, *arguments)
        except FinetuneError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def _list(self, limit: int) -> Versions:
        return list_versions(registry_client(), self.model, limit=limit)

    def _history(self) -> tuple[list[Record], bool]:
        """Read the history of moves. An interrupted move is left to a user who may promote."""
        client = registry_client()
        with registry_faults(self.model):
            _, tags = read_model(client, self.model)
            return history(client, self.model), INTENT_TAG in tags

    async def _load(self, limit: int, picked: str | None, other: str | None, request: gr.Request) -> tuple[Any, ...]:
        may = self._may_promote(request)
        try:
            versions, (records, is_cut_off) = await asyncio.gather(
                ask_mlflow(self._list, limit), ask_mlflow(self._history)
            )
        except FinetuneError as error:
            notice = note_html(f"The versions cannot be read now. {error}", "mf-bad")
            return (
                None,
                notice,
                *(gr.skip() for _ in range(2)),
                gr.update(visible=False),
                *_rights(may, False, False),
                "",
            )
        numbers = [version.number for version in versions.rows]
        selected = picked if picked in numbers else _first(versions)
        beside = other if other in numbers else ""
        choices = [(_label(version), version.number) for version in versions.rows]
        can_go_back = versions.has_more or any({PREVIOUS, CANARY} & set(version.aliases) for version in versions.rows)
        return (
            versions,
            gr.skip(),
            _choose(choices, selected, picked),
            _choose([("none", ""), *choices], beside, other),
            gr.update(visible=versions.has_more and len(versions.rows) < MOST_VERSIONS),
            *_rights(may, bool(numbers), can_go_back),
            history_html(records, is_cut_off=is_cut_off),
        )

    async def _pick(self, versions: Versions | None, event: gr.EventData) -> Any:
        """Handle a button of the table. The number comes from the browser, so it is checked against the list."""
        sent = event_data(event)
        number = str(sent.get("version", "")) if isinstance(sent, dict) else ""
        if versions is None or number not in [version.number for version in versions.rows]:
            return gr.skip()
        return number

    async def _show(self, versions: Versions | None, picked: str | None, other: str | None) -> tuple[Any, Any]:
        """Return the table with the selected version marked, and its card. Without a list, the notice stays."""
        if versions is None:
            return gr.skip(), gr.skip()
        table = versions_table(versions, picked)
        if not picked:
            return table, ""
        return table, await ask_mlflow(self._card, picked, other)

    def _card(self, picked: str, other: str | None) -> str:
        client = registry_client()
        try:
            card = read_card(client, self.model, picked)
            if not other or other == picked:
                return card_html(card)
            return comparison_html(card, read_card(client, self.model, other))
        except FinetuneError as error:
            return note_html(str(error), "mf-bad")

    async def _ask_promotion(self, picked: str | None, request: gr.Request) -> tuple[Any, ...]:
        if not self._may_promote(request):
            return (*_closed(), note_html(_NOT_ALLOWED))
        try:
            plan = await ask_mlflow(lambda: plan_promotion(registry_client(), self.model, picked or ""))
        except FinetuneError as error:
            return (*_closed(), note_html(str(error), "mf-bad"))
        return (*_asking(plan.text, promotion=plan), "")

    async def _promote(self, plan: PlannedPromotion | None, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        if not self._may_promote(request):
            yield (note_html(_NOT_ALLOWED), *_closed())
            return
        if plan is None:
            yield (note_html("No promotion was planned; fix: select a version and press Promote."), *_closed())
            return
        try:
            await asyncio.to_thread(self._promotions.begin, plan.model, plan.version, _person(request))
        except FinetuneError as error:
            yield (note_html(str(error), "mf-bad"), *_closed())
            return
        async for html in self._follow():
            yield (html, *_closed())

    async def _follow(self) -> AsyncIterator[Any]:
        """Yield the gate's progress and its verdict, also in a page that was opened after the gate started."""
        last = self._promotions.last(self.model)
        if last is None:
            yield gr.skip()
            return
        state: tuple[int, int] | None = None
        while last.end is None:
            seconds = (datetime.now(UTC) - last.begun).total_seconds()
            if state != (now := (len(last.lines), int(seconds))):
                state = now
                yield progress_html(last.version, last.lines, seconds)
            await asyncio.sleep(_POLL_S)
        yield verdict_html(last.version, last.end)

    async def _ask_rollback(self, request: gr.Request) -> tuple[Any, ...]:
        if not self._may_promote(request):
            return (*_closed(), note_html(_NOT_ALLOWED))
        try:
            plan = await ask_mlflow(lambda: plan_rollback(registry_client(), self.model))
        except FinetuneError as error:
            return (*_closed(), note_html(str(error), "mf-bad"))
        return (*_asking(plan.text, rollback=plan), "")

    async def _roll_back(self, plan: PlannedRollback | None, reason: str, request: gr.Request) -> tuple[Any, ...]:
        if not self._may_promote(request):
            return (note_html(_NOT_ALLOWED), *_closed())
        if plan is None:
            return (note_html("No rollback was planned; fix: press Roll back."), *_closed())
        try:
            done = await ask_mlflow(
                lambda: carry_out_rollback(registry_client(), plan, reason=reason.strip(), person=_person(request))
            )
        except FinetuneError as error:
            return (note_html(str(error), "mf-bad"), *_closed())
        return (note_html(f"Done. {done}", "mf-good"), *_closed())

    def _close(self) -> tuple[Any, ...]:
        return _closed()


def _asking(
    text: str, *, promotion: PlannedPromotion | None = None, rollback: PlannedRollback | None = None
) -> tuple[Any, ...]:
    """Return the confirmation step: what will happen, and the buttons that confirm or cancel."""
    is_rollback = rollback is not None
    return (
        note_html(text),
        gr.update(visible=is_rollback, value=""),
        gr.update(visible=promotion is not None),
        gr.update(visible=is_rollback),
        gr.update(visible=True),
        promotion,
        rollback,
    )


def _closed() -> tuple[Any, ...]:
    return ("", *(gr.update(visible=False) for _ in range(4)), None, None)


def _rights(may: bool, can_promote: bool, can_go_back: bool) -> tuple[Any, ...]:
    notice = "" if may else note_html(_NOT_ALLOWED)
    return notice, gr.update(interactive=may and can_promote), gr.update(interactive=may and can_go_back)


def _choose(choices: list[tuple[str, str]], selected: str | None, picked: str | None) -> Any:
    """Update the list of choices. The selection is not written where it stays, so a pick of the meantime is not lost."""
    return gr.update(choices=choices) if selected == picked else gr.update(choices=choices, value=selected)


def _first(versions: Versions) -> str | None:
    """Return the challenger, because it is the version to judge next, or else the newest version."""
    newest = versions.rows[0].number if versions.rows else None
    return next((version.number for version in versions.rows if CHALLENGER in version.aliases), newest)


def _label(version: VersionCard) -> str:
    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    return f"Version {version.number}{aliases}"


def _person(request: gr.Request) -> str:
    """Return the login; empty for a page without a login, where the machine's user is recorded instead."""
    return str(getattr(request, "username", None) or "")
