"""Compare whole answers of an engine with those that the trained model gave: their tokens, and their text by the router's rule."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_finetune_plugin.evaluation.answer_text import answer_text
from mlflow_finetune_plugin.serving.engines.engine import EngineProcess
from mlflow_finetune_plugin.serving.engines.probe_chats import ProbeChats


async def compare_answers(
    engine: EngineProcess,
    name: str,
    reference: Mapping[str, Any],
    *,
    precision: str,
    tolerance: float,
    stop_token_ids: Sequence[int],
    answer_prefix: str,
) -> tuple[int, str | None]:
    """Let an engine answer the probes whose answers are in a reference.

    An answer is compared up to the first token that was hardly likelier than the second best one, because there another order of
    additions may choose the other.

    Args:
        engine: A ready engine.
        name: The engine's name for the adapter.
        reference: The version's reference.json, which may have no answers.
        precision: The precision of serving.
        tolerance: How far a log-probability may be from its reference in any kernel, in nats. Two tokens can change places where
            their margin is below twice this.
        stop_token_ids: Tokens that end an answer.
        answer_prefix: What the chat template writes before each answer.

    Returns:
        How many answers were compared, and a description of the first that differs.
    """
    answers = ((reference.get("served_as") or {}).get(precision) or {}).get("answers", [])
    chats = ProbeChats(reference)
    faults = await asyncio.gather(
        *(
            _fault(
                engine,
                name,
                {**probe, "messages": chats.messages(probe)},
                answer,
                length,
                stop_token_ids,
                answer_prefix,
            )
            for answer in answers
            for probe in [reference["probes"][answer["probe"]]]
            if (length := _length(answer, probe, engine, 2 * tolerance))
        )
    )
    return len(faults), next(filter(None, faults), None)


def _length(answer: Mapping[str, Any], probe: Mapping[str, Any], engine: EngineProcess, least_margin: float) -> int:
    """Return how many tokens of an answer can be compared."""
    margins = answer["margins"]
    decided = next((number for number, margin in enumerate(margins) if not margin > least_margin), len(margins))
    context = engine.spec.limits.max_model_len
    return decided if context is None else max(0, min(decided, context - len(probe["prompt_ids"])))


async def _fault(
    engine: EngineProcess,
    name: str,
    probe: Mapping[str, Any],
    answer: Mapping[str, Any],
    length: int,
    stop_token_ids: Sequence[int],
    answer_prefix: str,
) -> str | None:
    """Return how the engine's answer differs; None if it does not."""
    body = {
        "model": name,
        "messages": probe["messages"],
        **({"tools": probe["tools"], "tool_choice": "none"} if probe.get("tools") else {}),
        "max_tokens": length,
        "temperature": 0,
        "stop_token_ids": list(stop_token_ids),
        "return_token_ids": True,
    }
    (choice,) = (await engine.complete(body, "/v1/chat/completions"))["choices"]
    text, expected = answer_text(choice["message"]["content"] or "", answer_prefix), answer["texts"][length - 1]
    if text != expected:
        return f"probe {answer['probe']} gives {text!r:.60}, the trained model {expected!r:.60}"
    if choice["token_ids"] != answer["ids"][:length]:
        return f"probe {answer['probe']} gives other tokens for {expected!r:.60}"
    return None
