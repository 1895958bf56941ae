"""Render the comparison page as HTML and as Markdown messages. Every foreign text is escaped."""

from __future__ import annotations

import difflib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from gradio_app.chat.client import StreamedAnswer
from gradio_app.chat.naming import SELF_NAMING
from gradio_app.chat.pictures import numbered
from gradio_app.chat.session import LABELS, ComparisonTurn, Session
from gradio_app.html_parts import tags_as_text
from mlflow_finetune_plugin.images.turns import pictures_of
from mlflow_finetune_plugin.votes.journal.vote import CastVote

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")

LONGEST = 40_000
"""Characters of each answer that are compared. The time of a comparison grows with their product."""

CHOICES = {"left": "A is better", "right": "B is better", "tie": "A tie", "both_bad": "Both are bad"}
_WAITING = "…"
_NOT_STORED = (
    "Votes on them are not stored, because they have no registered model in common. "
    "You can show their names at any time."
)

ChatMessages = list[dict[str, Any]]


def panels(session: Session, turn: ComparisonTurn | None, texts: Sequence[str] | None = None) -> list[ChatMessages]:
    """Return the messages of each panel: the conversation so far, which all panels share, and the side's answer."""
    sides = len(session.contenders) if turn is None else len(turn.answers)
    if turn is None:
        return [[] for _ in range(sides)]
    is_whole = turn.prompt.messages is not None
    shared = [
        _message(message, is_whole=is_whole)
        for message in numbered(turn.visible_messages())
        if is_whole or message["role"] != "system"
    ]
    answers = texts if texts is not None else [turn.visible(position) for position in range(sides)]
    return [
        [*shared, {"role": "assistant", "content": _answer_text(turn, position, tags_as_text(answers[position]))}]
        for position in range(sides)
    ]


def _message(message: dict[str, str], *, is_whole: bool) -> dict[str, Any]:
    """Return an earlier message.

    ``is_whole`` false marks an answer as the one of two that the conversation continues from.
    """
    role = message["role"] if message["role"] in ("user", "assistant") else "user"
    text = message["content"] if role == message["role"] else f"*{message['role']}*\n\n{message['content']}"
    mark = "\n\n*The conversation continues from this answer.*" if role == "assistant" and not is_whole else ""
    return {"role": role, "content": tags_as_text(text) + mark}


def _answer_text(turn: ComparisonTurn, position: int, text: str) -> str:
    answer = turn.answers[position]
    if not answer.is_over or (turn.shown is not None and turn.shown[position] < answer.length):
        return text or _WAITING  # The end or the fault of a side appears with its last word.
    notes = []
    if answer.fault is not None:
        notes.append(f"**This side {answer.fault}.**")
        if answer.fault_detail and not turn.hides_names:
            notes.append(f"`{answer.fault_detail.replace('`', chr(39))}`")
    if answer.is_stopped:
        notes.append("*Stopped.*")
    if not answer.length and not notes:
        notes.append("*This side gave an empty answer.*")
    return "\n\n".join(filter(None, [text, *notes]))


def side_line(turn: ComparisonTurn | None, position: int) -> str:
    """Return the line under a panel: the model's name and measurements, once names are shown."""
    if turn is None:
        return _line(f"Answer {LABELS[position]}", "")
    if turn.hides_names:
        hint = "name can be shown after your vote" if turn.can_be_voted_on or not turn.is_over else "name hidden"
        return _line(f"Answer {LABELS[position]}", hint)
    answer, contender = turn.answers[position], turn.contenders[position]
    facts = [*_figures(answer), *_receipt(answer)]
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return (
        f'<div class="mf-side"><strong>{escape(contender.name)}</strong>'
        f'<span class="mf-soft">answer {LABELS[position]}</span><dl>{shown}</dl></div>'
    )


def _line(name: str, hint: str) -> str:
    return f'<div class="mf-side"><strong>{name}</strong><span class="mf-soft">{hint}</span></div>'


def _figures(answer: StreamedAnswer) -> list[tuple[str, str]]:
    figures = []
    if answer.first_token_s is not None:
        figures.append(("first token", f"{answer.first_token_s * 1000:,.0f} ms"))
    if answer.tokens_per_s is not None:
        figures.append(("speed", f"{answer.tokens_per_s:,.1f} tokens/s"))
    elif answer.total_s is not None:
        figures.append(("time", f"{answer.total_s:,.2f} s"))
    if answer.completion_tokens is not None:
        figures.append(("tokens", f"{answer.prompt_tokens or 0:,} in, {answer.completion_tokens:,} out"))
    if answer.finish_reason == "length":
        figures.append(("ended", "at the token limit"))
    return figures


def _receipt(answer: StreamedAnswer) -> list[tuple[str, str]]:
    receipt = answer.receipt
    if receipt is None:
        return [("receipt", "none, so votes with this side do not count for a promotion")] if answer.is_over else []
    adapter = f", adapter {receipt.adapter_digest[:12]}" if receipt.adapter_digest else ""
    names = f"{receipt.model}/{receipt.version}{adapter}, base {receipt.base_digest[:12]}"
    return [("receipt", names), ("request", receipt.request_id)]


@dataclass(frozen=True)
class Controls:
    """The buttons that the page's script enables. Handlers check again. ``voted`` is the choice of the present vote."""

    sides: int
    is_speaking: bool = False
    can_vote: bool = False
    voted: str | None = None
    can_show_names: bool = False
    has_turn: bool = False
    takes_pictures: bool = False


def controls(session: Session) -> Controls:
    """Return the controls for the session's present state."""
    turn = session.last
    if turn is None:
        return Controls(len(session.contenders), takes_pictures=session.takes_pictures)
    voted = turn.vote.choice if turn.vote is not None else None
    return Controls(
        sides=max(len(session.contenders), len(turn.answers)),
        is_speaking=not turn.is_over,
        can_vote=turn.can_be_voted_on and turn.hides_names,
        voted=voted,
        can_show_names=turn.hides_names and turn.is_over and (voted is not None or not turn.can_be_voted_on),
        has_turn=True,
        takes_pictures=session.takes_pictures,
    )


def pictures_view(session: Session) -> str:
    """Return the pictures of the last turn's messages, with the numbers by which the messages name them."""
    names = pictures_of(session.last.messages) if session.last is not None else []
    figures = "".join(
        f'<figure><img src="{session.pictures[name].thumbnail}" alt="picture {number}">'
        f"<figcaption>Picture {number}</figcaption></figure>"
        for number, name in enumerate(names, start=1)
        if name in session.pictures
    )
    return (
        f'<div class="mf-pictures" role="group" aria-label="pictures of this conversation">{figures}</div>'
        if figures
        else ""
    )


def state(html: str, enabled: Controls) -> str:
    """Return a notice that carries the controls for the page's script."""
    return f'<div data-mf="{escape(json.dumps(asdict(enabled)), quote=True)}">{html}</div>'


def status(session: Session) -> str:
    """Return the notice for the session's present state."""
    turn = session.last
    if turn is None:
        return welcome(session)
    return vote_notice(turn, turn.vote) if turn.vote is not None else turn_notice(turn)


def welcome(session: Session) -> str:
    """Return the notice before the first prompt."""
    if session.is_blind:
        count = {2: "Two", 3: "Three", 4: "Four"}.get(len(session.contenders), str(len(session.contenders)))
        rest = "then vote for the better answer."
        if len(session.contenders) > 2:
            rest = "and compare. A vote needs exactly two sides; remove the others to vote."
        elif not session.keeps_votes:
            rest = f"and compare. {_NOT_STORED}"
        elif session.votes_note:
            rest = f"{rest} {session.votes_note}"
        return notice(f"{count} models answer with hidden names. Send a prompt, {rest}")
    return notice("Names are shown, so you cannot vote. Hide the names to vote blind.")


def turn_notice(turn: ComparisonTurn) -> str:
    """Return the notice after the answers."""
    failed = [LABELS[position] for position, answer in enumerate(turn.answers) if answer.fault is not None]
    if failed and len(failed) == len(turn.answers):
        return notice("No side answered. Retry, or check whether the models are served.", "bad")
    if failed:
        return notice(f"Side {' and '.join(failed)} did not answer completely. Retry to compare.", "warn")
    if any(answer.is_stopped for answer in turn.answers):
        return notice("Stopped. Retry, or send another prompt.")
    if turn.can_be_voted_on:
        hint = ""
        if turn.names_itself:
            hint = " An answer names a model, so a vote on this turn is marked."
        elif turn.visible(0) == turn.visible(1):
            hint = " Both answers are the same text."
        return notice(f"Which answer is better? Keys: ← A, → B, ↑ a tie, ↓ both bad.{hint}")
    if not turn.is_blind:
        return notice("Names are shown, so you cannot vote. Hide the names in the settings to vote blind.")
    if len(turn.answers) > 2:
        return notice("Compare the answers. A vote needs exactly two sides; remove the others to vote.")
    if not turn.keeps_votes:
        return notice(f"Compare the answers. {_NOT_STORED}")
    if turn.is_known_by_name:
        return notice("You have already seen one of these answers with its name. Send another prompt to vote.")
    return notice("A vote on this turn would not be fair. Retry, or send another prompt.")


def vote_notice(turn: ComparisonTurn, cast: CastVote) -> str:
    """Return the notice after a vote, with the names once they are shown."""
    text = f"Your vote: {escape(CHOICES[cast.choice])}. "
    if turn.are_names_shown:
        text += ", ".join(
            f"{LABELS[position]} was <strong>{escape(contender.name)}</strong>"
            for position, contender in enumerate(turn.contenders)
        )
        text += ". The vote is final; you can still add reasons."
    else:
        text += "You can change it until you show the names or send another prompt."
    if SELF_NAMING in cast.reasons:
        text += " An answer named a model, so the vote is marked."
    if any(side.receipt is None for side in cast.sides):
        text += " A side has no router's receipt, so the vote is stored and does not count for a promotion."
    return notice_html(text, "good")


def notice(text: str, kind: str = "") -> str:
    """Return a notice. ``kind`` is good, warn or bad; empty means plain."""
    return notice_html(escape(text), kind)


def notice_html(html: str, kind: str = "") -> str:
    role = "alert" if kind == "bad" else "status"
    return f'<div class="mf-notice mf-{kind or "plain"}" role="{role}">{html}</div>'


def difference_view(turn: ComparisonTurn | None) -> str:
    """Return both answers, with the words marked that only one of them contains."""
    if turn is None or len(turn.answers) < 2:
        return notice("There are no two answers to compare yet.")
    left, right = differences(turn.visible(0), turn.visible(1))
    same = " The answers are the same." if turn.visible(0) == turn.visible(1) else ""
    return (
        f'<div class="mf-diff" role="group" aria-label="differences word by word"><p class="mf-soft">'
        f"Marked words are in one answer only.{same}</p>"
        f"<div><h4>A</h4><pre>{left}</pre></div><div><h4>B</h4><pre>{right}</pre></div></div>"
    )


def history_view(session: Session) -> str:
    """Return the session's turns, newest first, without names that are still hidden."""
    if not session.turns:
        return notice("This session has no prompts yet.")
    rows = "".join(_history_row(number, turn) for number, turn in reversed(list(enumerate(session.turns, 1))))
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("#", "prompt", "vote", "A", "B"))
    return f'<div class="mf-scroll"><table class="mf-table"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _history_row(number: int, turn: ComparisonTurn) -> str:
    shown = turn.prompt.text
    if turn.prompt.pictures:
        count = len(turn.prompt.pictures)
        shown = f"[{count} {'picture' if count == 1 else 'pictures'}] {shown}"
    text = shown if len(shown) <= 120 else shown[:119] + "…"
    vote = CHOICES[turn.vote.choice] if turn.vote is not None else "-"
    names = ["hidden" if turn.hides_names else contender.name for contender in turn.contenders[:2]]
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in (text, vote, *names))
    return f'<tr><th scope="row">{number}</th>{cells}</tr>'


def reference_view(turn: ComparisonTurn | None) -> str:
    """Return the reference answer of a prompt set once the vote is cast."""
    if turn is None or turn.prompt.reference is None:
        return ""
    if turn.vote is None:
        return '<p class="mf-soft">The reference answer appears after your vote.</p>'
    return f'<details open class="mf-reference"><summary>Reference answer</summary><pre>{escape(turn.prompt.reference)}</pre></details>'


def soft(text: str) -> str:
    """Return a line in a subdued colour."""
    return f'<p class="mf-soft" role="status">{escape(text)}</p>'


def share_notice(token: str) -> str:
    """Return a notice with the link to a shared conversation, relative to this page."""
    link = f"?shared={escape(token, quote=True)}"
    return notice_html(
        "Everyone who can open this page can read this conversation at "
        f'<a href="{link}" target="_blank" rel="noopener">this link</a>. '
        "Hidden names stay hidden there."
    )


def shared_view(conversation: Mapping[str, Any]) -> str:
    """Return a shared conversation as plain text, without rendering its Markdown."""
    turns = "".join(_shared_turn(number, turn) for number, turn in enumerate(conversation.get("turns", []), 1))
    return (
        f'<section class="mf-shared" aria-label="shared conversation"><h3>A shared conversation</h3>{turns}</section>'
    )


def _shared_turn(number: int, turn: Mapping[str, Any]) -> str:
    prompt = str(numbered(turn["messages"])[-1]["content"])
    answers = "".join(
        f"<div><h4>{escape(answer['side'])} {escape(str(answer.get('model') or ''))}</h4><pre>{escape(answer['content'])}</pre></div>"
        for answer in turn["answers"]
    )
    voted = f'<p class="mf-soft">{escape(CHOICES[turn["vote"]])}</p>' if turn.get("vote") else ""
    return f'<h4>{number}. {escape(prompt)}</h4><div class="mf-diff">{answers}</div>{voted}'


def differences(left: str, right: str) -> tuple[str, str]:
    """Return both texts as escaped HTML, with ``<mark>`` around the words that only one of them contains."""
    if left == right:
        return html.escape(left), html.escape(right)
    a, b = _WORDS.findall(left[:LONGEST]), _WORDS.findall(right[:LONGEST])
    parts: tuple[list[str], list[str]] = ([], [])
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for side, words in ((0, a[a0:a1]), (1, b[b0:b1])):
            text = html.escape("".join(words))
            parts[side].append(text if tag == "equal" or not text else f"<mark>{text}</mark>")
    rests = (left[LONGEST:], right[LONGEST:])
    marked = ["".join(part) + html.escape(rest) for part, rest in zip(parts, rests, strict=True)]
    return marked[0], marked[1]
