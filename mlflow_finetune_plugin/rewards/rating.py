"""Ask a language model behind an OpenAI-compatible endpoint for a number, and read it from the reply."""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mlflow_finetune_plugin.rewards.completion import Completion, PartScore
from mlflow_finetune_plugin.rewards.part import ColumnFaults
from mlflow_finetune_plugin.rewards.settings import ChatEndpoint, JudgePrompt
from mlflow_finetune_plugin.rewards.templates import (
    JUDGE_ROOTS,
    MissingFieldError,
    MissingOutputError,
    parse_template,
)

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"\A```\w*\n(.*)\n```\Z", re.DOTALL)
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_MARKED = re.compile(rf"\[\[\s*({_NUMBER})\s*\]\]")
_LABELLED = re.compile(rf"(?:score|rating|result|grade|reward)\s*[:=]\s*({_NUMBER})\s*\.?", re.IGNORECASE)
_KEYS = ("result", "score", "rating", "grade", "reward")
_FORMS = 'fix: ask for [[NUMBER]], {"score": NUMBER}, a last line "Score: NUMBER", or the number alone'
_LONGEST_REASON = 500
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 20.0


class RatingFault(Exception):
    """An endpoint gave no rating; the text says why."""


@dataclass(frozen=True)
class Rating:
    """What to ask and which numbers are allowed.

    Attributes:
        body: Returns the request's body for a completion.
        bounds: The lowest and the highest rating; None: any number.
        missing_output: The value of a completion that lacks a field of the template; None: it is a fault.
    """

    body: Callable[[Completion], dict[str, Any]]
    bounds: tuple[float, float] | None
    missing_output: float | None = None


def judge_part(judge: JudgePrompt, timeout_s: float) -> RatingPart:
    """Return the part that asks a judge."""
    template = parse_template(judge.prompt, JUDGE_ROOTS)

    def body(completion: Completion) -> dict[str, Any]:
        message = {"role": "user", "content": template.render(completion)}
        sampling = {"temperature": judge.temperature, "max_tokens": judge.max_tokens}
        return {"model": judge.model, "messages": [message], **sampling}

    def faults(columns: Collection[str] | None) -> list[str]:
        missing = template.missing_columns(columns) if columns is not None else []
        return [f"the rows have no column {name!r}; fix: correct judge.prompt" for name in missing]

    bounds = (judge.range[0], judge.range[1]) if judge.range else None
    return RatingPart(Rating(body, bounds), judge, timeout_s, faults)


class RatingPart:
    """A part that a language model rates, several completions at a time."""

    def __init__(self, rating: Rating, endpoint: ChatEndpoint | None, timeout_s: float, faults: ColumnFaults) -> None:
        self._rating = rating
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._column_faults = faults
        self._client: Any = None

    def check(self, columns: Collection[str] | None) -> list[str]:
        """Return what is wrong; see ``RewardPart``. The endpoint is not asked."""
        faults = self._column_faults(columns)
        if self._endpoint is None:
            faults.append(
                "score_model has no endpoint; fix: add endpoint: {base_url: ..., api_key_env: ...} beside grader"
            )
        elif (name := self._endpoint.api_key_env) and not os.environ.get(name):
            faults.append(
                f"the environment variable {name} (api_key_env) is not set; fix: set it to the endpoint's API key"
            )
        return faults

    def open(self) -> None:
        """Make the client; see ``RewardPart``."""
        import httpx

        if self._endpoint is None or self._client is not None:
            return
        key = os.environ.get(self._endpoint.api_key_env or "")
        self._client = httpx.Client(timeout=self._timeout_s, headers={"authorization": f"Bearer {key}"} if key else {})

    def close(self) -> None:
        """Close the client."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def score(self, completions: Sequence[Completion], *, until_fault: bool = False) -> list[PartScore]:
        """Score the completions; see ``RewardPart``."""
        self.open()
        stop = threading.Event()

        def rate(completion: Completion) -> PartScore:
            if stop.is_set():
                return PartScore()
            score = self._rate(completion)
            if until_fault and score.fault:
                stop.set()
            return score

        with ThreadPoolExecutor(self._endpoint.concurrency if self._endpoint else 1) as pool:
            return list(pool.map(rate, completions))

    def _rate(self, completion: Completion) -> PartScore:
        try:
            body = self._rating.body(completion)
        except MissingOutputError as error:
            if self._rating.missing_output is None:
                return PartScore(fault=str(error))
            return PartScore(self._rating.missing_output, str(error))
        except MissingFieldError as error:
            return PartScore(fault=str(error))
        try:
            reply = self._ask(body)
            return PartScore(self._checked(parse_rating(reply)), reply[:_LONGEST_REASON])
        except RatingFault as error:
            return PartScore(fault=str(error))

    def _checked(self, number: float) -> float:
        bounds = self._rating.bounds
        if bounds is not None and not bounds[0] <= number <= bounds[1]:
            raise RatingFault(f"the rating {number:g} is outside of the range {bounds[0]:g} to {bounds[1]:g}")
        return number

    def _ask(self, body: dict[str, Any]) -> str:
        """Return the text of the reply. Lost connections, 429 and 5xx are tried again, after longer and longer waits."""
        import httpx

        assert self._endpoint is not None  # checked before
        url = self._endpoint.base_url.rstrip("/") + "/chat/completions"
        fault = ""
        for attempt in range(self._endpoint.tries):
            if attempt:
                time.sleep(min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (attempt - 1)))
            try:
                response = self._client.post(url, json=body)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                fault = f"{type(error).__name__}: {error}"
                continue
            if response.status_code == 200:
                return _reply_text(response)
            fault = f"HTTP {response.status_code}: {' '.join(response.text.split())[:200]}"
            if response.status_code != 429 and response.status_code < 500:
                break
        raise RatingFault(f"the endpoint {url} does not answer: {fault}")


def _reply_text(response: Any) -> str:
    try:
        text = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise RatingFault(f"the endpoint's answer is not a chat completion: {error!r}") from error
    if not isinstance(text, str):
        raise RatingFault("the endpoint's answer has no text")
    return text


def parse_rating(reply: str) -> float:
    """Read the rating from a reply, after a ``<think>`` block.

    It is, in this order: the last ``[[NUMBER]]``; the ``result``, ``score``, ``rating``, ``grade`` or ``reward`` of a reply that
    is a JSON object; the number of a last line like ``Score: NUMBER``; or the number that is the whole reply.

    Raises:
        RatingFault: the reply has no such number.
    """
    text = _THOUGHT.sub("", reply).strip()
    if marked := _MARKED.findall(text):
        return _finite(marked[-1], reply)
    if (value := _of_json(text)) is not None:
        return _finite(value, reply)
    last = text.splitlines()[-1].strip() if text else ""
    if match := _LABELLED.fullmatch(last.strip("*_ ")):
        return _finite(match[1], reply)
    if re.fullmatch(_NUMBER, text):
        return _finite(text, reply)
    raise RatingFault(f"the reply has no rating: {' '.join(reply.split())[:120]!r}; {_FORMS}")


def _of_json(text: str) -> Any:
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    return next((value[key] for key in _KEYS if isinstance(value.get(key), (int, float, str))), None)


def _finite(value: Any, reply: str) -> float:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise RatingFault(f"the reply's rating is not a number: {' '.join(reply.split())[:120]!r}; {_FORMS}")
    return number
