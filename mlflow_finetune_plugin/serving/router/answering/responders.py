"""Which version, or which base, answers a request."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_finetune_plugin.serving.engines.engine import EngineProcess
from mlflow_finetune_plugin.serving.engines.fleet import Fleet, Resident
from mlflow_finetune_plugin.serving.router.answering.answer_texts import AnswerTexts
from mlflow_finetune_plugin.serving.router.first_answers import Draw
from mlflow_finetune_plugin.serving.router.follower import Follower, NotReadyError, UnknownModelError
from mlflow_finetune_plugin.serving.router.requests import CHAT_ROUTE, CheckedRequest, RequestError
from mlflow_finetune_plugin.serving.versions.names import header_value, parse
from mlflow_finetune_plugin.store.model_ref import ModelRef
from mlflow_finetune_plugin.store.names import BASE

RETRY_S = 5
"""Seconds after which a client should send a request again that nothing could answer yet."""


@dataclass(frozen=True)
class Responder:
    """The version, or the base, that answers a request."""

    engine: EngineProcess
    name: str
    model: str
    version: str
    adapter_digest: str
    stop_token_ids: list[int]
    resident: Resident | None
    alias: str | None = None
    draw: Draw | None = None
    answer_prefix: str = ""
    sees: bool = False
    """Whether it takes pictures."""

    @classmethod
    def of_resident(cls, resident: Resident, alias: str | None, draw: Draw | None = None) -> Responder:
        """Return a version that is loaded."""
        version = resident.version
        return cls(
            engine=resident.engine,
            name=resident.name,
            model=version.model,
            version=version.number,
            adapter_digest=version.adapter.digest,
            stop_token_ids=list(version.card["stop_token_ids"]),
            resident=resident,
            alias=alias,
            draw=draw,
            answer_prefix=str(version.card.get("answer_prefix", "")),
            sees=version.sees,
        )

    def answer_texts(self, route: str) -> AnswerTexts | None:
        """Return the rule for the texts of an answer; None for completions, which continue the prompt as it is."""
        return AnswerTexts(self.answer_prefix) if route == CHAT_ROUTE else None

    def receipt(self, request_id: str) -> dict[str, str]:
        """Return the headers that prove which version answered."""
        return {
            "x-finetune-model": header_value(self.model),
            "x-finetune-version": header_value(self.version),
            "x-finetune-adapter-digest": self.adapter_digest,
            "x-finetune-base-digest": self.engine.spec.key.base_digest,
            "x-finetune-request-id": request_id,
        }


class Responders:
    """Finds the responder of a request by the model that it names.

    Args:
        follower: Finds the version of an alias.
        fleet: The engines, for requests that name a base.
    """

    def __init__(self, follower: Follower, fleet: Fleet) -> None:
        self._follower, self._fleet = follower, fleet

    async def find(self, checked: CheckedRequest) -> Responder:
        """Return who answers.

        Raises:
            RequestError: 404 for an unknown model, 503 for a version that is not loaded yet, 400 for pictures that it cannot read.
        """
        responder = await self._find(checked)
        if checked.client_urls and not responder.sees:
            who = responder.name if responder.resident is None else f"{responder.model}/{responder.version}"
            message = f"{who} reads text only; fix: send no pictures, or name a version whose base reads pictures"
            raise RequestError(400, message, "pictures_not_supported", "messages")
        return responder

    async def _find(self, checked: CheckedRequest) -> Responder:
        ref = parse(checked.model, self._follower.served_models())
        base = self._base(checked.model) if ref is None else None  # a registered model's name has precedence
        if base is not None:
            return Responder(base, base.spec.base_name, base.spec.base_name, BASE, "", [], None, sees=base.spec.sees)
        if ref is None:
            raise unknown_model(checked.model, "no such model here")
        try:
            resident, alias = await self._follower.find(ref, checked.user)
        except UnknownModelError as error:
            raise unknown_model(checked.model, str(error)) from error
        except NotReadyError as error:
            raise RequestError(503, str(error), "not_ready", "model", RETRY_S) from error
        return Responder.of_resident(resident, alias, self._draw(ref, checked.user))

    def _draw(self, ref: ModelRef, user: str | None) -> Draw | None:
        """Return how the alias of a request was chosen; None where the request names an alias or a version."""
        model = self._follower.snapshot.get(ref.name)
        if ref.alias is not None or ref.version is not None or model is None:
            return None
        return Draw(user, bool(model.traffic.split))

    def _base(self, model_id: str) -> EngineProcess | None:
        """Return the engine of a base by its own name, or by ``base`` if all engines have the same base."""
        engines = list(self._fleet.engines.values())
        if model_id == BASE and self._fleet.has_one_base:
            return _first_ready(engines)
        return _first_ready([engine for engine in engines if engine.spec.base_name == model_id])


def _first_ready(engines: list[EngineProcess]) -> EngineProcess | None:
    return next((engine for engine in engines if engine.state == "ready"), engines[0] if engines else None)


def unknown_model(model_id: str, why: str) -> RequestError:
    """Return the error for a model that the router does not have. ``why`` may name the model and its own fix."""
    message = why if "; fix: " in why else f"{model_id[:200]!r}: {why}; fix: use one of GET /v1/models"
    return RequestError(404, message, "model_not_found", "model")
