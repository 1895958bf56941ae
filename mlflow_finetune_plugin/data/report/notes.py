"""Say in words what is unusual about the rows that were read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlflow_finetune_plugin.data.report.tally import RowTally


def notes_on_rows(tallies: Sequence[RowTally], *, writes_reasoning: bool) -> Iterator[str]:
    """Yield the notes on all files. ``writes_reasoning``: whether the chat template writes what the model thought."""
    for tally in tallies:
        yield from (f"{tally.name}: {note}" for note in tally.source_notes)
    developers = sum(tally.developer_turns for tally in tallies)
    if developers:
        yield f"{developers:,} developer turns were read as system turns"
    contexts = sum(tally.context_answers for tally in tallies)
    if contexts:
        yield (
            f"{contexts:,} assistant turns are context and carry no loss: the rows exclude them (weight: 0, train: false, "
            "loss: false), they are part of a prompt, or no user turn comes before them"
        )
    reasoning = sum(tally.reasoning_turns for tally in tallies)
    if reasoning and not writes_reasoning:
        yield f"{reasoning:,} turns hold reasoning, which is left out because the chat template does not write it"
    written = sum(tally.written_answers for tally in tallies)
    if written:
        yield f"{written:,} answers are numbers, booleans or objects, and were written as text (an object as JSON)"
    several = sum(tally.conversations - tally.rows_read for tally in tallies)
    if several:
        yield f"rows with several answers became {several:,} additional conversations"
    if any(tally.layout.name == "text" for tally in tallies):
        yield "plain text is used without the chat template: the model learns every token but the first, and the end token"
