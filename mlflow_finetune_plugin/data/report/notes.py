"""Say in words what is unusual about the rows that were read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlflow_finetune_plugin.data.conversations.layouts import TEXT
from mlflow_finetune_plugin.data.report.tally import RowTally
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer


def report_notes(tallies: Sequence[RowTally], renderer: ChatRenderer) -> Iterator[str]:
    """Yield the notes on the chat template, unless all rows are plain text, and on the rows of all files."""
    if any(tally.layout.name != TEXT for tally in tallies):
        yield from renderer.notes
    yield from notes_on_rows(tallies, writes_reasoning=renderer.writes_reasoning)


def notes_on_rows(tallies: Sequence[RowTally], *, writes_reasoning: bool) -> Iterator[str]:
    """Yield the notes on all files. ``writes_reasoning``: whether the chat template writes what the model thought."""
    for tally in tallies:
        yield from (f"{tally.name}: {note}" for note in tally.source_notes)
    developers = sum(tally.developer_turns for tally in tallies)
    if developers:
        yield f"{_counted(developers, 'developer turn was', 'developer turns were')} read as {_system(developers)}"
    contexts = sum(tally.context_answers for tally in tallies)
    if contexts:
        yield (
            f"{_counted(contexts, 'assistant turn is', 'assistant turns are')} context and {_carry(contexts)} no loss: the rows "
            "exclude them (weight: 0, train: false, loss: false or the like), they are part of a prompt, or no user turn comes before them"
        )
    reasoning = sum(tally.reasoning_turns for tally in tallies)
    if reasoning and not writes_reasoning:
        yield (
            f"{_counted(reasoning, 'turn holds', 'turns hold')} reasoning, which is left out because the chat template does not "
            "write it"
        )
    written = sum(tally.written_answers for tally in tallies)
    if written:
        yield (
            f"{_counted(written, 'answer is a number, boolean or object, and was', _WRITTEN)} written as text (an object as JSON)"
        )
    several = sum(tally.conversations - tally.rows_read for tally in tallies)
    if several:
        yield f"rows with several answers became {_counted(several, 'additional conversation', 'additional conversations')}"
    if any(tally.layout.name == TEXT for tally in tallies):
        yield "plain text is used without the chat template: the model learns every token but the first, and the end token"


_WRITTEN = "answers are numbers, booleans or objects, and were"


def _counted(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def _system(count: int) -> str:
    return "a system turn" if count == 1 else "system turns"


def _carry(count: int) -> str:
    return "carries" if count == 1 else "carry"
