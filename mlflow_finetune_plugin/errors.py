"""The errors that a user can cause, all of one base class. Standard library only.

A message says what is wrong, where, and how to fix it. Leaf errors also subclass the standard exception that a
caller without this package would catch.
"""

import difflib
import re


class FinetuneError(Exception):
    """An error that a user can cause: its message says what is wrong, where, and how to fix it."""


class ConfigError(FinetuneError, ValueError):
    """The recipe, the ``-P`` overrides or the backend config are not valid. ``problems`` lists every problem."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{head} in the configuration:\n" + "\n".join(f"  - {p}" for p in problems))


class DataError(FinetuneError, ValueError):
    """A data file cannot be read, or has no row to train on."""


class BaseModelError(FinetuneError, ValueError):
    """The base model is missing, incomplete, not causal, unsafe to load, or does not fit the request."""


class PlanError(FinetuneError, ValueError):
    """By the plan's forecast the run does not fit on this machine. No weight was read."""


class GateError(FinetuneError, ValueError):
    """The policy or the evidence of a promotion is not valid: not numbers, different rows, or a bound that no version can pass."""


class MoveError(FinetuneError, RuntimeError):
    """The alias was not moved: the registry has changed since the move was planned, or it refused the move."""


class LeaseError(MoveError):
    """Another process moves the aliases of this registered model, or this process lost its lease."""


class MissingExtraError(FinetuneError, ImportError):
    """An optional package is not installed. The message names the extra that installs it."""


class LibraryVersionError(FinetuneError, ImportError):
    """The installed version of a library lacks something inside it that this package needs. The message names the version."""


class TrackingError(FinetuneError, ConnectionError):
    """The tracking server or registry cannot be reached, or refuses the request."""


class ProjectError(FinetuneError, ValueError):
    """The project folder, git URI or MLproject file cannot be used."""


class TrainingError(FinetuneError, RuntimeError):
    """The training cannot be used: the loss was not finite, memory ran out, or the adapter did not change."""


class RewardError(FinetuneError, RuntimeError):
    """A reward cannot be used: it failed, took too long, or gave something that is not a number. ``part`` names it, ``row`` the row."""

    def __init__(self, message: str, *, part: str = "", row: int | None = None) -> None:
        self.part = part
        self.row = row
        super().__init__(message)


class RunFailedError(FinetuneError, RuntimeError):
    """A run ended as FAILED or KILLED. ``run_id`` names it."""

    def __init__(self, message: str, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(message)


class ReloadError(FinetuneError, RuntimeError):
    """The logged model does not give the trained model's answers."""


class StoreError(FinetuneError, OSError):
    """An adapter cannot be written to, or read from, the folder of fetched adapters."""


class ServingError(FinetuneError, RuntimeError):
    """A version cannot be served, or an engine refused a request."""


class EngineChoiceError(ServingError):
    """An engine cannot serve a version, and will not later: it loads no adapters on this base, or not of this kind."""


class EngineError(ServingError):
    """An engine cannot answer now, because it is starting or has ended. The version is not at fault."""


class VoteError(FinetuneError, ValueError):
    """A vote cannot be cast, imported, judged or read."""


class JournalError(FinetuneError, OSError):
    """The journal of votes on this disk cannot be read or written. A vote that raised this error was not cast."""


def in_short(error: BaseException) -> str:
    """Return another library's error in one line, with its type."""
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """Return another library's error in one line of at most 400 characters, without passwords in addresses."""
    return without_secrets(" ".join(str(error).split()))[:400]


def without_secrets(text: str) -> str:
    """Return an address, or a message with addresses, without the users, passwords and tokens in them."""
    text = re.sub(r"://[^/\s]*@", "://", text)
    return re.sub(r"([?&](?:password|passwd|pwd|token|secret|api_key)=)[^&\s'\"]*", r"\1***", text, flags=re.IGNORECASE)


def unknown(what: str, value: str, choices: list[str]) -> str:
    """Return one line for a name that is not among the choices, with the nearest choice."""
    value = value[:120]
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"no {what} '{value}'; {hint}fix: pick one of: {', '.join(choices)}"
