"""A visitor of a page that Gradio serves, who presses what a browser would: also what no API is made for."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any
from uuid import uuid4

Event = dict[str, Any]


class Visitor:
    """One open page: state that the server keeps is this visitor's."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.session = uuid4().hex
        with urllib.request.urlopen(f"{self.url}/config") as answer:
            self.config = json.load(answer)
        radios = [component for component in self.config["components"] if component["type"] == "radio"]
        self._values: dict[int, Any] = {radio["id"]: radio["props"].get("value") for radio in radios}

    def select_tab(self, label: str) -> dict[str, Any]:
        return self._cause(self._component("tabitem", "label", label), "select", {"value": label, "index": 0})

    def press(self, label: str) -> dict[str, Any]:
        """What a button with this text, or beginning so, causes; what is chained to it too."""
        return self._cause(self._component("button", "value", label), "click")

    def choose(self, label: str, value: str) -> dict[str, Any]:
        number = self._component("dropdown", "label", label)
        self._values[number] = value
        return self._cause(number, "input")

    def write(self, label: str, value: str) -> None:
        self._values[self._component("textbox", "label", label)] = value

    def page(self) -> str:
        """All HTML that is shown now."""
        return "\n".join(str(value) for value in self._values.values() if isinstance(value, str) and "<" in value)

    def text(self) -> str:
        return re.sub(r"<[^>]+>", " ", self.page())

    def _component(self, kind: str, prop: str, wanted: str) -> int:
        found = [
            one["id"]
            for one in self.config["components"]
            if one["type"] == kind and str(one["props"].get(prop, "")).startswith(wanted)
        ]
        assert len(found) == 1, (wanted, found)
        return int(found[0])

    def _cause(self, component: int, event: str, data: Any = None) -> dict[str, Any]:
        """What the last step gave each component; the values are kept as a page would."""
        steps = [one for one in self.config["dependencies"] if [component, event] in one["targets"]]
        assert len(steps) == 1, (component, event)
        told: dict[str, Any] = {}
        while steps:
            step = steps.pop(0)
            told |= self._run(step, data)
            steps += [one for one in self.config["dependencies"] if one["trigger_after"] == step["id"]]
            data = None
        return told

    def _run(self, step: dict[str, Any], data: Any) -> dict[str, Any]:
        body = {
            "data": [self._values.get(number) for number in step["inputs"]],
            "fn_index": step["id"],
            "session_hash": self.session,
            "event_data": data,
            "trigger_id": None,
        }
        request = urllib.request.Request(
            f"{self.url}/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            event_id = json.load(answer)["event_id"]
        shown: list[Any] = []
        for message in self._messages():
            if message.get("event_id") != event_id or "output" not in message:
                continue
            assert message.get("success", True), message
            shown = _patched(shown, message)
            if message["msg"] == "process_completed":
                break
        told = {}
        for number, value in zip(step["outputs"], shown, strict=False):
            told[str(number)] = value
            if isinstance(value, dict) and value.get("__type__") == "update":
                if "value" in value:
                    self._values[number] = value["value"]
            else:
                self._values[number] = value
        return told

    def _messages(self) -> Any:
        with urllib.request.urlopen(
            f"{self.url}/gradio_api/queue/data?session_hash={self.session}", timeout=120
        ) as answer:
            for line in answer:
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])


def _patched(before: list[Any], message: Event) -> list[Any]:
    """Later messages of a generator say what is different, as [action, path, value]."""
    data = message["output"].get("data", [])
    if message["msg"] != "process_generating" or not before:
        return data or before
    return [_apply(old, new) if isinstance(new, list) else new for old, new in zip(before, data, strict=True)]


def _apply(old: Any, changes: list[Any]) -> Any:
    for action, path, value in changes:
        assert path == [], path
        old = {"replace": value, "append": f"{old}{value}"}[action]
    return old
