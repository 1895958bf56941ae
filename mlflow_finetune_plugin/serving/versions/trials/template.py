"""Render a chat template of a version in a process with limits, and compare it with the template of its base.

A template is a program that any writer of the registry can change. ``try_template`` renders several shapes of conversations: one
turn, a system turn, several turns, a long prompt, and prompts with each text that the template itself contains, because a
condition on a prompt has to name it. The child process is ``python -m`` of this module. It imports Jinja, and nothing that
is slow to start.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.serving.versions.trials.limited_process import run_limited, set_limits

_TEMPLATE, _SETTINGS = "chat_template.jinja", "tokenizer_config.json"
_LIMIT_S = 60.0
_CPU_S = 10
_MEMORY_BYTES = 2**30
_LARGEST_TEMPLATE = 2**20  # characters
_LARGEST_TEXT = 2**20  # characters of a rendering
_MOST_WORDS = 100
_LONGEST_DIFFERENCE = 4000
_PLAIN = "apple"
_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}


@dataclass(frozen=True)
class TemplateReport:
    """How a version's chat template differs from that of its base.

    Attributes:
        lines: Lines that differ.
        words: Texts that change the rest of the rendering when a prompt contains them.
        difference: The differing lines as in ``diff``, at most 4,000 characters.
    """

    lines: int = 0
    words: tuple[str, ...] = ()
    difference: str = ""

    @property
    def summary(self) -> str:
        if not self.lines:
            return "the base's"
        words = ", ".join(repr(word) for word in self.words[:5])
        return f"{self.lines} lines differ from the base's" + (
            f"; prompts with {words} are rendered differently" if words else ""
        )


def try_template(tokenizer: Path, base: Path, trusted: frozenset[str], name: str) -> TemplateReport:
    """Render the chat template of a version, unless it is its base's. It blocks.

    Args:
        tokenizer: The folder of the version's tokenizer.
        base: The folder of its base.
        trusted: Templates of this package.
        name: The version, for messages.

    Raises:
        ServingError: A template is not valid, or takes too much time or memory.
    """
    base_texts = templates(base)
    other_texts = [text for text in templates(tokenizer) if text not in (*base_texts, *trusted)]
    if not other_texts:
        return TemplateReport()
    words: list[str] = []
    for text in other_texts:
        words += _words_in_child(text, name)
    before = base_texts[0].splitlines() if base_texts else []
    changes = [
        line
        for line in difflib.unified_diff(before, other_texts[0].splitlines(), lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    return TemplateReport(max(1, len(changes)), tuple(dict.fromkeys(words)), "\n".join(changes)[:_LONGEST_DIFFERENCE])


def templates(folder: Path) -> list[str]:
    """Return the chat templates in a tokenizer's folder, the one that is used first."""
    texts: list[str] = []
    if (folder / _TEMPLATE).is_file():
        texts.append((folder / _TEMPLATE).read_text(encoding="utf-8"))
    if (folder / _SETTINGS).is_file():
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        configured = settings.get("chat_template") or []
        entries = configured if isinstance(configured, list) else [configured]
        texts += [str(entry.get("template") if isinstance(entry, dict) else entry) for entry in entries]
    return texts


def _words_in_child(text: str, name: str) -> list[str]:
    """Return the words that change a rendering."""
    if len(text) > _LARGEST_TEMPLATE:
        raise ServingError(f"{name}: its chat template has {len(text):,} characters; fix: train it with a shorter one")
    words, fault = run_limited(__name__, json.dumps(text), _LIMIT_S)
    if fault is not None:
        raise ServingError(
            f"{name}: its chat template cannot be rendered within {_CPU_S} s and {_MEMORY_BYTES:,} bytes: {fault}; fix: train it "
            "with another data.chat_template"
        )
    return list(json.loads(words))


def main() -> None:
    """Render the template on stdin, and write the words that change a rendering to stdout."""
    set_limits(_CPU_S, _MEMORY_BYTES)
    environment = _environment()
    text = json.load(sys.stdin)
    words = _texts_in(environment.parse(text))
    template = environment.from_string(text)
    for messages in _shapes():
        _rendered(template, messages)
    plain = _rendered(template, [_user(_PLAIN)])
    changing = [
        word
        for word in words
        if (rendered := _rendered(template, [_user(f"{_PLAIN} {word}")])) != plain.replace(_PLAIN, f"{_PLAIN} {word}")
        and rendered != plain.replace(_PLAIN, f"{_PLAIN} {word}".strip())
    ]
    json.dump(changing, sys.stdout)


def _shapes() -> Iterator[list[dict[str, str]]]:
    answer = {"role": "assistant", "content": "pear"}
    yield [{"role": "system", "content": "Be brief."}, _user("Name a fruit.")]
    yield [
        _user("Name a fruit."),
        answer,
        _user("Another?"),
        answer,
        _user("Ünïcödé \u4f60\u597d \U0001f600 {{ 1 }} {% x %} <|x|>"),
    ]
    yield [_user("word " * 4000)]
    yield [_user("a"), *[message for _ in range(100) for message in (answer, _user("b"))]]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _rendered(template: Any, messages: list[dict[str, str]]) -> str:
    """Return the rendering, or the template's own refusal. Raises ValueError for a text that is too long."""
    from jinja2 import TemplateError

    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate(
            messages=messages, add_generation_prompt=True, tools=None, documents=None, **_TOKENS
        ):
            length += len(piece)
            if length > _LARGEST_TEXT:
                raise ValueError(f"it renders more than {_LARGEST_TEXT:,} characters")
            pieces.append(piece)
    except RecursionError:
        raise
    except (TemplateError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        return f"refused: {error}"
    return "".join(pieces)


def _texts_in(parsed: Any) -> list[str]:
    """Return the texts that a template contains, without what it writes itself."""
    from jinja2 import nodes

    texts = (node.value for node in parsed.find_all(nodes.Const) if isinstance(node.value, str))
    return [text for text in dict.fromkeys(texts) if text.strip()][:_MOST_WORDS]


def _environment() -> Any:
    """Return an environment with the same functions as that of Transformers (utils/chat_template_utils.py)."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Reads ``{% generation %}`` blocks, which mark answers and write nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


if __name__ == "__main__":
    main()
