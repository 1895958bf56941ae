"""What the compare page says, as HTML and as Markdown messages. Every text that came from elsewhere is escaped."""

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
from gradio_app.chat.session import LABELS, ComparisonTurn, Session
from gradio_app.html_parts import tags_as_text
from mlflow_finetune_plugin.votes.journal.vote import CastVote

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")

LONGEST = 40_000
"""Characters of each; the comparison takes time that grows with the product."""

CHOICES = {"left": "A is better", "right": "B is better", "tie": "A tie", "both_bad": "Both are bad"}
_WAITING = "…"
_NOT_STORED = (
    "Votes on them are not kept: they have no registered model in common. Their names can be shown at any time."
)

ChatMessages = list[dict[str, Any]]


def panels(session: Session, turn: ComparisonTurn | None, texts: Sequence[str] | None = None) -> list[ChatMessages]:
    """Per position, what its panel shows: the conversation so far, which is the same on all, and its own answer."""
    sides = len(session.contenders) if turn is None else len(turn.answers)
    if turn is None:
        return [[] for _ in range(sides)]
    is_whole = turn.prompt.messages is not None
    shared = [
        _message(one, is_whole=is_whole) for one in turn.visible_messages() if is_whole or one["role"] != "system"
    ]
    told = texts if texts is not None else [turn.visible(place) for place in range(sides)]
    return [
        [*shared, {"role": "assistant", "content": _answer_text(turn, place, tags_as_text(told[place]))}]
        for place in range(sides)
    ]


def _message(one: dict[str, str], *, is_whole: bool) -> dict[str, Any]:
    """``is_whole``: of a conversation that a prompt set brought; else an earlier answer is one of two, and says so."""
    role = one["role"] if one["role"] in ("user", "assistant") else "user"
    text = one["content"] if role == one["role"] else f"*{one['role']}*\n\n{one['content']}"
    went_on = "\n\n*The conversation went on from this answer.*" if role == "assistant" and not is_whole else ""
    return {"role": role, "content": tags_as_text(text) + went_on}


def _answer_text(turn: ComparisonTurn, place: int, text: str) -> str:
    answer = turn.answers[place]
    if not answer.is_over or (turn.shown is not None and turn.shown[place] < answer.length):
        return text or _WAITING  # that a side has ended, or failed, is told with its last word
    notes = []
    if answer.fault is not None:
        notes.append(f"**This side {answer.fault}.**")
        if answer.fault_detail and not turn.hides_names:
            notes.append(f"`{answer.fault_detail.replace('`', chr(39))}`")
    if answer.is_stopped:
        notes.append("*Stopped.*")
    if not answer.length and not notes:
        notes.append("*This side answered with nothing.*")
    return "\n\n".join(filter(None, [text, *notes]))


def side_line(turn: ComparisonTurn | None, place: int) -> str:
    """Under a panel: who this is, and what was measured, once that may be known."""
    if turn is None:
        return _line(f"Answer {LABELS[place]}", "")
    if turn.hides_names:
        said = (
            "its name can be shown after your vote"
            if turn.can_be_voted_on or not turn.is_over
            else "its name is hidden"
        )
        return _line(f"Answer {LABELS[place]}", said)
    answer, contender = turn.answers[place], turn.contenders[place]
    facts = [*_figures(answer), *_receipt(answer)]
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return (
        f'<div class="mf-side"><strong>{escape(contender.name)}</strong>'
        f'<span class="mf-soft">answer {LABELS[place]}</span><dl>{shown}</dl></div>'
    )


def _line(name: str, said: str) -> str:
    return f'<div class="mf-side"><strong>{name}</strong><span class="mf-soft">{said}</span></div>'


def _figures(answer: StreamedAnswer) -> list[tuple[str, str]]:
    told = []
    if answer.first_token_s is not None:
        told.append(("first token", f"{answer.first_token_s * 1000:,.0f} ms"))
    if answer.tokens_per_s is not None:
        told.append(("speed", f"{answer.tokens_per_s:,.1f} tokens/s"))
    elif answer.total_s is not None:
        told.append(("time", f"{answer.total_s:,.2f} s"))
    if answer.completion_tokens is not None:
        told.append(("tokens", f"{answer.prompt_tokens or 0:,} in, {answer.completion_tokens:,} out"))
    if answer.finish_reason == "length":
        told.append(("ended", "at the limit of tokens"))
    return told


def _receipt(answer: StreamedAnswer) -> list[tuple[str, str]]:
    receipt = answer.receipt
    if receipt is None:
        return [("receipt", "none: votes with this side do not count for a promotion")] if answer.is_over else []
    adapter = f", adapter {receipt.adapter_digest[:12]}" if receipt.adapter_digest else ""
    who = f"{receipt.model}/{receipt.version}{adapter}, base {receipt.base_digest[:12]}"
    return [("receipt", who), ("request", receipt.request_id)]


@dataclass(frozen=True)
class Controls:
    """What the page's script lets be pressed; the handlers check again. ``voted``: the choice made."""

    sides: int
    is_speaking: bool = False
    can_vote: bool = False
    voted: str | None = None
    can_show_names: bool = False
    has_turn: bool = False


def controls(session: Session) -> Controls:
    """As the session is now."""
    turn = session.last
    if turn is None:
        return Controls(len(session.contenders))
    voted = turn.vote.choice if turn.vote is not None else None
    return Controls(
        sides=max(len(session.contenders), len(turn.answers)),
        is_speaking=not turn.is_over,
        can_vote=turn.can_be_voted_on and turn.hides_names,
        voted=voted,
        can_show_names=turn.hides_names and turn.is_over and (voted is not None or not turn.can_be_voted_on),
        has_turn=True,
    )


def state(html: str, found: Controls) -> str:
    """A notice that carries the controls for the page's script."""
    return f'<div data-mf="{escape(json.dumps(asdict(found)), quote=True)}">{html}</div>'


def status(session: Session) -> str:
    """What there is to say now."""
    turn = session.last
    if turn is None:
        return welcome(session)
    return vote_notice(turn, turn.vote) if turn.vote is not None else turn_notice(turn)


def welcome(session: Session) -> str:
    """Before the first prompt."""
    if session.is_blind:
        count = {2: "Two", 3: "Three", 4: "Four"}.get(len(session.contenders), str(len(session.contenders)))
        rest = "then say which answer is better. Their names can be shown after your vote."
        if len(session.contenders) > 2:
            rest = "and compare. Votes are between two sides: take the others away to vote."
        elif not session.keeps_votes:
            rest = f"and compare. {_NOT_STORED}"
        return notice(f"{count} models answer, and you are not told which is which. Ask something, {rest}")
    return notice("Names are shown, so votes are not taken here. Hide the names to vote blind.")


def turn_notice(turn: ComparisonTurn) -> str:
    """After the answers."""
    failed = [LABELS[place] for place, answer in enumerate(turn.answers) if answer.fault is not None]
    if failed and len(failed) == len(turn.answers):
        return notice("No side answered. Try again, or look whether the models are served.", "bad")
    if failed:
        return notice(f"Side {' and '.join(failed)} did not answer whole; the other did. Retry to compare.", "warn")
    if any(answer.is_stopped for answer in turn.answers):
        return notice("Stopped. Retry, or go on with another prompt.")
    if turn.can_be_voted_on:
        hint = ""
        if turn.names_itself:
            hint = " An answer names a model; a vote on this turn is marked."
        elif turn.visible(0) == turn.visible(1):
            hint = " Both are the same text."
        return notice(f"Which answer is better? Keys: ← A, → B, ↑ a tie, ↓ both bad.{hint}")
    if not turn.is_blind:
        return notice("Names are shown, so votes are not taken here. Hide the names in the settings to vote blind.")
    if len(turn.answers) > 2:
        return notice("Compare them. Votes are between two sides: take the others away to vote.")
    if not turn.keeps_votes:
        return notice(f"Compare them. {_NOT_STORED}")
    if turn.is_known_by_name:
        return notice("You have seen one of these answers with its name, so a vote on it would not be blind. Go on.")
    return notice("There is nothing fair to vote on here. Retry, or go on with another prompt.")


def vote_notice(turn: ComparisonTurn, cast: CastVote) -> str:
    """What was voted, and what it counts; who was who, once that is shown."""
    said = f"Your vote: {escape(CHOICES[cast.choice])}. "
    if turn.are_names_shown:
        said += ", ".join(
            f"{LABELS[place]} was <strong>{escape(contender.name)}</strong>"
            for place, contender in enumerate(turn.contenders)
        )
        said += ". It stands now; reasons can still be added."
    else:
        said += "Change it as you like, until you show the names or go on with another prompt."
    if SELF_NAMING in cast.reasons:
        said += " An answer named a model, so the vote is marked."
    if any(side.receipt is None for side in cast.sides):
        said += " A side has no receipt of a router, so it is kept but does not count for a promotion."
    return notice_html(said, "good")


def notice(text: str, kind: str = "") -> str:
    """A line for people; kinds: good, warn, bad."""
    return notice_html(escape(text), kind)


def notice_html(html: str, kind: str = "") -> str:
    role = "alert" if kind == "bad" else "status"
    return f'<div class="mf-notice mf-{kind or "plain"}" role="{role}">{html}</div>'


def difference_view(turn: ComparisonTurn | None) -> str:
    """Both answers with what only one says marked."""
    if turn is None or len(turn.answers) < 2:
        return notice("There are no two answers to compare yet.")
    left, right = differences(turn.visible(0), turn.visible(1))
    same = " The answers are the same." if turn.visible(0) == turn.visible(1) else ""
    return (
        f'<div class="mf-diff" role="group" aria-label="differences word by word"><p class="mf-soft">'
        f"Marked words are said by one side alone.{same}</p>"
        f"<div><h4>A</h4><pre>{left}</pre></div><div><h4>B</h4><pre>{right}</pre></div></div>"
    )


def history_view(session: Session) -> str:
    """The session's turns, newest first; names of turns that still hide them are not told."""
    if not session.turns:
        return notice("Nothing has been asked in this session yet.")
    rows = "".join(_history_row(number, turn) for number, turn in reversed(list(enumerate(session.turns, 1))))
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("#", "prompt", "vote", "A", "B"))
    return f'<div class="mf-scroll"><table class="mf-table"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _history_row(number: int, turn: ComparisonTurn) -> str:
    text = turn.prompt.text if len(turn.prompt.text) <= 120 else turn.prompt.text[:119] + "…"
    vote = CHOICES[turn.vote.choice] if turn.vote is not None else "-"
    names = ["hidden" if turn.hides_names else contender.name for contender in turn.contenders[:2]]
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in (text, vote, *names))
    return f'<tr><th scope="row">{number}</th>{cells}</tr>'


def reference_view(turn: ComparisonTurn | None) -> str:
    """The reference answer of a prompt set, once the vote is cast."""
    if turn is None or turn.prompt.reference is None:
        return ""
    if turn.vote is None:
        return '<p class="mf-soft">A reference answer is shown after your vote.</p>'
    return f'<details open class="mf-reference"><summary>Reference answer</summary><pre>{escape(turn.prompt.reference)}</pre></details>'


def soft(text: str) -> str:
    """A quiet line."""
    return f'<p class="mf-soft" role="status">{escape(text)}</p>'


def share_notice(token: str) -> str:
    """The link, which the page's script completes with its own address."""
    link = f"?shared={escape(token, quote=True)}"
    return notice_html(
        f'Whoever may open this page can read this conversation at <a href="{link}" target="_blank" rel="noopener">this link</a>. '
        "Names that are hidden stay hidden in it."
    )


def shared_view(told: Mapping[str, Any]) -> str:
    """A conversation that somebody else had, as text: nothing of it is rendered."""
    turns = "".join(_shared_turn(number, turn) for number, turn in enumerate(told.get("turns", []), 1))
    return (
        f'<section class="mf-shared" aria-label="shared conversation"><h3>A shared conversation</h3>{turns}</section>'
    )


def _shared_turn(number: int, turn: Mapping[str, Any]) -> str:
    asked = str(turn["messages"][-1]["content"])
    answers = "".join(
        f"<div><h4>{escape(answer['side'])} {escape(str(answer.get('model') or ''))}</h4><pre>{escape(answer['content'])}</pre></div>"
        for answer in turn["answers"]
    )
    voted = f'<p class="mf-soft">{escape(CHOICES[turn["vote"]])}</p>' if turn.get("vote") else ""
    return f'<h4>{number}. {escape(asked)}</h4><div class="mf-diff">{answers}</div>{voted}'


def differences(left: str, right: str) -> tuple[str, str]:
    """Both as HTML, every text of theirs escaped; ``<mark>`` is around what one alone says: neither is the other's correction."""
    if left == right:
        return html.escape(left), html.escape(right)
    a, b = _WORDS.findall(left[:LONGEST]), _WORDS.findall(right[:LONGEST])
    parts: tuple[list[str], list[str]] = ([], [])
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for side, words in ((0, a[a0:a1]), (1, b[b0:b1])):
            text = html.escape("".join(words))
            parts[side].append(text if tag == "equal" or not text else f"<mark>{text}</mark>")
    rests = (left[LONGEST:], right[LONGEST:])
    told = ["".join(part) + html.escape(rest) for part, rest in zip(parts, rests, strict=True)]
    return told[0], told[1]
