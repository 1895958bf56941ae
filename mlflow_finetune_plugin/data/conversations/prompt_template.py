"""Compose a prompt of several columns with a Jinja template, in a sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mlflow_finetune_plugin.data.conversations.layouts import COMPOSED
from mlflow_finetune_plugin.data.conversations.pictures import PICTURE_COLUMNS
from mlflow_finetune_plugin.data.conversations.row_faults import NULL_FIELD, TEMPLATE_FAILS, RowFault
from mlflow_finetune_plugin.errors import DataError

_ROW = "row"


class PromptTemplate:
    """A Jinja template over the columns of a row, by their names or as ``row['a name with blanks']``."""

    def __init__(self, text: str) -> None:
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, finalize=_not_null)
        try:
            tree = environment.parse(text)
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                f"{COMPOSED}, line {error.lineno}: {error.message}; fix: write a Jinja template over the columns, "
                'for example "{{ question }}\\n\\n{{ context }}"'
            ) from error
        names = jinja2.meta.find_undeclared_variables(tree)
        self.columns = frozenset(names - {_ROW} | _items_of_row(tree))
        """The columns that the template reads."""

    def check(self, present: list[str]) -> None:
        """Raise DataError for a column that the file does not have. The same prompt for all rows needs pictures."""
        if not self.columns and not set(PICTURE_COLUMNS) & set(present):
            raise DataError(f"{COMPOSED}: it reads no column; fix: write for example " + '"{{ question }}"')
        missing = sorted(self.columns - set(present))
        if missing:
            raise DataError(
                f"{COMPOSED}: the file has no column {missing[0]!r}; fix: use its columns: {', '.join(present)}"
            )

    def compose(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row with its composed prompt. A column that this row does not have is null.

        Raises:
            RowFault: the template writes a null value, or fails on this row.
        """
        values = {column: row.get(column) for column in self.columns}
        try:
            prompt = self._template.render({**values, _ROW: values})
        except jinja2.TemplateError as error:
            raise RowFault(TEMPLATE_FAILS, str(error)) from error
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise RowFault(TEMPLATE_FAILS, f"{type(error).__name__}: {error}") from error
        return {**row, COMPOSED: prompt}


def _not_null(value: Any) -> Any:
    """Refuse to write the word None into a prompt."""
    if value is None:
        raise RowFault(NULL_FIELD, f"{COMPOSED} writes a null value")
    return value


def _items_of_row(tree: jinja2.nodes.Template) -> set[str]:
    return {
        item.arg.value
        for item in tree.find_all(jinja2.nodes.Getitem)
        if isinstance(item.node, jinja2.nodes.Name)
        and item.node.name == _ROW
        and isinstance(item.arg, jinja2.nodes.Const)
    }
