"""Turns with their two answers, for a judge: those that people voted on, or two models asked the same questions."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import httpx

from mlflow_finetune_plugin.errors import VoteError
from mlflow_finetune_plugin.types import Message
from mlflow_finetune_plugin.votes.feedback import ToldSide, ToldVote
from mlflow_finetune_plugin.votes.spoken_answer import SpokenText
from mlflow_finetune_plugin.votes.vote import Position, Receipt, Side, Turn, prompt_digest, text_digest


@dataclass(frozen=True)
class Pair:
    """A turn and its two answers as shown."""

    turn: Turn
    sides: tuple[Side, Side]


@dataclass(frozen=True)
class AskedPairs:
    """Pairs made by asking, and (prompt number from 1, why there is no pair)."""

    pairs: tuple[Pair, ...]
    faults: tuple[tuple[int, str], ...]


def pairs_told(votes: Iterable[ToldVote], texts: Mapping[str, SpokenText]) -> list[Pair]:
    """The pairs voted on, each once, whose texts are still those that were voted on."""
    pairs: dict[tuple[str, frozenset[str]], Pair] = {}
    for vote in votes:
        left, right = (texts.get(side.trace_id) for side in (vote.left, vote.right))
        if left is None or right is None or prompt_digest(left.messages) != vote.prompt_digest:
            continue
        sides = (_told_side(vote.left, left, "left"), _told_side(vote.right, right, "right"))
        if sides[0] is None or sides[1] is None:
            continue
        turn = Turn(vote.turn_id, vote.session, left.messages, vote.prompt_set)
        answers = frozenset({vote.left.answer_id, vote.right.answer_id})
        pairs.setdefault((vote.turn_id, answers), Pair(turn, (sides[0], sides[1])))
    return list(pairs.values())


def ask_pairs(
    prompts: Iterable[tuple[Message, ...]],
    *,
    url: str,
    models: tuple[str, str],
    api_key: str | None = None,
    max_tokens: int = 512,
    timeout_s: float = 120.0,
    seed: int = 0,
) -> AskedPairs:
    """Asks two models of a router (``url`` ends in /v1) the same questions, greedily; who is shown left is drawn by ``seed``."""
    order = random.Random(seed)
    session = f"judge-{uuid.uuid4().hex[:12]}"
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    pairs, faults = [], []
    with httpx.Client(timeout=timeout_s, headers=headers) as client:
        for number, messages in enumerate(prompts, 1):
            shown = list(models)
            order.shuffle(shown)
            try:
                left, right = (
                    _asked(client, url, model, messages, max_tokens, position)
                    for model, position in zip(shown, ("left", "right"), strict=True)
                )
            except (VoteError, httpx.HTTPError, httpx.InvalidURL) as error:
                faults.append((number, f"{type(error).__name__}: {error}"))
                continue
            pairs.append(Pair(Turn(uuid.uuid4().hex, session, messages), (left, right)))
    return AskedPairs(tuple(pairs), tuple(faults))


def _told_side(side: ToldSide, text: SpokenText, position: Position) -> Side | None:
    if text_digest(text.answer) != side.answer_digest:
        return None
    return Side(side.receipt, text.answer, side.trace_id, position)


def _asked(
    client: httpx.Client, url: str, model: str, messages: tuple[Message, ...], max_tokens: int, position: str
) -> Side:
    body = {"model": model, "messages": list(messages), "temperature": 0, "max_tokens": max_tokens}
    answer = client.post(url.rstrip("/") + "/chat/completions", json=body)
    if answer.status_code != 200:
        raise VoteError(f"{model}: HTTP {answer.status_code}: {' '.join(answer.text.split())[:200]}")
    try:
        text = answer.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise VoteError(f"{model}: the answer is no chat completion: {error!r}") from error
    place: Position = "left" if position == "left" else "right"
    return Side(Receipt.from_headers(answer.headers), str(text or ""), None, place)
