"""Every error a user can cause, one family. Standard library only.

A message says what is wrong, where, and how to fix it. Leaf errors also subclass the standard exception that a
caller without this package would catch.
"""

import difflib
import re


class FinetuneError(Exception):
    """What went wrong, where, and the fix, in one message meant for the person who started the run."""


class ConfigError(FinetuneError, ValueError):
    """The recipe, the ``-P`` overrides or the backend config do not make a run. Holds every fault found, not the first."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{head} in the configuration:\n" + "\n".join(f"  - {p}" for p in problems))


class DataError(FinetuneError, ValueError):
    """A data file cannot be read, or holds no row to train on."""


class BaseModelError(FinetuneError, ValueError):
    """The base model is missing, incomplete, not causal, unsafe to load, or does not fit the request."""


class PlanError(FinetuneError, ValueError):
    """What is asked for cannot be had on this machine, by the plan's prediction; nothing was spent."""


class GateError(FinetuneError, ValueError):
    """The evidence or the policy of a promotion is broken: not numbers, not the same rows, nothing that could pass."""


class MoveError(FinetuneError, RuntimeError):
    """An alias is not moved: what the registry holds is not what the move was meant for, or the registry refuses."""


class LeaseError(MoveError):
    """Somebody else moves the aliases of this registered model, or the right to do so was lost."""


class MissingExtraError(FinetuneError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class TrackingError(FinetuneError, ConnectionError):
    """The tracking server or registry cannot be reached, or refuses the request."""


class ProjectError(FinetuneError, ValueError):
    """The project folder, git URI or MLproject file cannot be used."""


class TrainingError(FinetuneError, RuntimeError):
    """Training ran and its result cannot be trusted: loss not finite, out of memory, an adapter that did not move."""


class RunFailedError(FinetuneError, RuntimeError):
    """A run ended as FAILED or KILLED. ``run_id`` names it."""

    def __init__(self, message: str, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(message)


class ReloadError(FinetuneError, RuntimeError):
    """The logged model does not give back the trained model's answers."""


class StoreError(FinetuneError, OSError):
    """An adapter cannot be put into, or taken from, the store of served adapters."""


class ServingError(FinetuneError, RuntimeError):
    """A version cannot be served, or an engine does not do what it was asked."""


class EngineError(ServingError):
    """An engine cannot be asked now: it starts, or has died. It is no fault of a version."""


class VoteError(FinetuneError, ValueError):
    """A vote cannot be cast, imported, judged or read as it is."""


class JournalError(FinetuneError, OSError):
    """The journal of votes on this disk cannot be read or written; a vote that raised it was not cast."""


def in_short(error: BaseException) -> str:
    """Somebody else's error in a line, with its kind."""
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """Somebody else's error in a line of at most 400 characters, without the passwords of addresses in it."""
    return without_secrets(" ".join(str(error).split()))[:400]


def without_secrets(text: str) -> str:
    """An address, or a message that holds some, without the user and password that it may carry."""
    return re.sub(r"://[^/\s]*@", "://", text)


def unknown(what: str, value: str, choices: list[str]) -> str:
    """One line for a name that is none of the choices, with the nearest one."""
    value = value[:120]
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"no {what} '{value}'; {hint}fix: pick one of: {', '.join(choices)}"
