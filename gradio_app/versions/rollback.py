"""Describe a promotion or a rollback before it is confirmed, and carry out the rollback as the command does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradio_app.versions.cards import find_version
from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.promotion.moves.canary_moves import stop_canary
from mlflow_finetune_plugin.promotion.moves.canary_state import read_state
from mlflow_finetune_plugin.promotion.moves.move import roll_back
from mlflow_finetune_plugin.store.names import CHAMPION, PREVIOUS
from mlflow_finetune_plugin.store.people import on_behalf_of
from mlflow_finetune_plugin.store.registered_model import named, read_model, registry_faults

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class PlannedPromotion:
    """The promotion of a version, as it would happen now if the gate passes it."""

    model: str
    version: str
    champion: str | None

    @property
    def text(self) -> str:
        over = (
            "its base, because there is no champion yet"
            if self.champion is None
            else f"{CHAMPION} version {self.champion}"
        )
        after = "" if self.champion is None else f"; {PREVIOUS} becomes version {self.champion}, for a rollback"
        return (
            f"The gate judges version {self.version} against {over}, by the policy that its training recorded. If the version passes, "
            f"{CHAMPION} becomes version {self.version} and is served from then on{after}. If the verdict is hold or reject, nothing "
            "moves. Either way the decision is recorded under your name. It takes seconds to minutes."
        )


def plan_promotion(client: MlflowClient, model: str, version: str) -> PlannedPromotion:
    """Return the plan. Raises MoveError for a version that does not exist or is champion, TrackingError. Reads only."""
    with registry_faults(model):
        aliases, _ = read_model(client, model)
        number = str(find_version(client, model, version).version)
    if aliases.get(CHAMPION) == number:
        raise MoveError(f"{model}: version {number} is {CHAMPION} already; fix: pick another version")
    return PlannedPromotion(model, number, aliases.get(CHAMPION))


@dataclass(frozen=True)
class PlannedRollback:
    """A rollback as it would happen now. ``canary`` is the candidate of a running canary, which would end instead."""

    model: str
    champion: str | None
    previous: str | None
    canary: str | None

    @property
    def text(self) -> str:
        if self.canary is not None:
            return (
                f"The canary of version {self.canary} ends, and the split of traffic before it is restored. {CHAMPION} stays "
                f"{named(self.champion)}."
            )
        return (
            f"{CHAMPION} goes from {named(self.champion)} back to {named(self.previous)}, which is served from then on; {PREVIOUS} "
            f"becomes {named(self.champion)}, so that another rollback undoes this one. The gate does not judge a rollback."
        )


def plan_rollback(client: MlflowClient, model: str) -> PlannedRollback:
    """Return the plan. Raises MoveError where there is no version to return to, TrackingError. Reads only."""
    with registry_faults(model):
        aliases, tags = read_model(client, model)
    champion, previous, canary = aliases.get(CHAMPION), aliases.get(PREVIOUS), read_state(tags)
    if canary is not None and champion != canary.candidate:
        return PlannedRollback(model, champion, previous, canary.candidate)
    if previous is None or previous == champion:
        raise MoveError(
            f"{model}: no version has the alias {PREVIOUS!r} that could become {CHAMPION} again; fix: promote a second version first"
        )
    return PlannedRollback(model, champion, previous, None)


def carry_out_rollback(client: MlflowClient, plan: PlannedRollback, *, reason: str, person: str) -> str:
    """Roll back and return a report.

    Raises MoveError when the aliases no longer match the plan, LeaseError, TrackingError.
    """
    if plan_rollback(client, plan.model) != plan:
        raise MoveError(
            f"{plan.model}: its aliases have moved since the plan was made; nothing was moved; fix: plan the rollback again"
        )
    with on_behalf_of(person):
        if plan.canary is not None:
            ended = stop_canary(client, plan.model, reason=reason or None)
            return ended or f"{plan.model}: the canary had ended meanwhile; nothing was moved"
        if plan.champion is None or plan.previous is None:
            move = roll_back(client, plan.model, reason=reason or None)
        else:
            move = roll_back(client, plan.model, reason=reason or None, judged=(plan.champion, plan.previous))
    report = f"{move.settled.text}; {move.text}" if move.settled is not None else move.text
    if move.unrecorded is not None:
        report += f"; the alias has moved, but its record could not be written yet: {move.unrecorded}"
    return report
