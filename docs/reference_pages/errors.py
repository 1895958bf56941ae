"""The page on errors and exit codes."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_finetune_plugin import errors
from mlflow_finetune_plugin.cli.main import INTERRUPTED
from mlflow_finetune_plugin.errors import FinetuneError, RunFailedError
from mlflow_finetune_plugin.promotion.decision import EXIT_CODES as PROMOTION_CODES
from mlflow_finetune_plugin.watch.check import EXIT_CODES as WATCH_CODES
from reference_pages.markdown import code, page, prose, table

_INTRODUCTION = """
Every error that a user can cause is a `FinetuneError`. Its message says what is wrong, where, and how to fix it. On the
command line it is printed without a traceback. Most errors are also of the type that a caller would catch without this
package; for example, a `DataError` is a `ValueError`.
"""
_PYTHON = """
```python
from mlflow_finetune_plugin.errors import FinetuneError, RunFailedError
```
"""
_CODES = "These exit codes hold for every command:"
_OWN_CODES = "These commands report their verdict in the exit code:"
_MLFLOW_RUN = """
`mlflow run PROJECT -b finetune` exits with 0 if the run has the status FINISHED, and with another code if the request is not
valid or the run ended as FAILED or KILLED. The reason is in the run's tag `finetune.status_reason` too.
"""


def render() -> str:
    """Return the page."""
    common = (
        ("0", "Success."),
        ("1", "A run failed, or the command could not do its work although its arguments are valid."),
        ("2", "An error of the user: an argument, the configuration, the data, or a server that does not answer."),
        (str(INTERRUPTED), "Ctrl-C."),
    )
    verdicts = [
        (code("plan"), "0", "The run fits."),
        (code("plan"), "1", "No forecast is possible."),
        (code("plan"), "2", "The run does not fit."),
        *((code("promote"), str(number), f"Verdict `{verdict}`.") for verdict, number in PROMOTION_CODES.items()),
        *((code("watch"), str(number), f"Verdict `{verdict}`.") for verdict, number in WATCH_CODES.items()),
        (code("doctor"), "1", "Something needs a fix."),
    ]
    return page(
        "Errors and exit codes",
        "## Errors",
        _INTRODUCTION,
        _PYTHON,
        table(("error", "also a", "exit code", "meaning"), _errors()),
        "## Exit codes",
        _CODES,
        table(("code", "meaning"), common),
        _OWN_CODES,
        table(("command", "code", "meaning"), verdicts),
        _MLFLOW_RUN,
    )


def _errors() -> Iterator[tuple[str, str, str, str]]:
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, FinetuneError):
            bases = ", ".join(code(base.__name__) for base in value.__bases__ if base is not Exception)
            exit_code = "1" if issubclass(value, RunFailedError) else "2"
            yield code(name), bases, exit_code, prose(value)
