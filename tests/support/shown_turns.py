"""Show conversations in a form that a test writes by hand: ``user: text``, ``assistant: text``, and ``(assistant): text`` for
an assistant turn that carries no loss."""

from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.data.conversations.turns.chat import is_learnt


def shown(messages):
    return [
        f"{turn['role'] if turn['role'] != 'assistant' or is_learnt(turn) else '(assistant)'}: {turn['content']}"
        for turn in messages
    ]


def read(form, *rows, **settings):
    """Return the conversations of a file with these rows."""
    reading = interpret(rows, ColumnSettings(form=form, **settings))
    conversations = [conversation for row in rows for conversation in reading.conversations(row)]
    reading.check_columns()
    return conversations
