"""The prompt sets of one playground, and each voter's progress in them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradio_app.chat.session import Contender, Prompt, SessionError
from gradio_app.prompts.held_out import held_out_set
from gradio_app.prompts.progress import JudgedPrompts, Progress, progress
from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.store.names import BASE
from mlflow_finetune_plugin.votes.journal.journal import Journal
from mlflow_finetune_plugin.votes.prompt_sets import PromptSet, read_prompt_set

if TYPE_CHECKING:
    from mlflow import MlflowClient

HELD_OUT = "Held-out rows of the training"
"""The set of the first side that is a version. Its name contains no version, because the blind page displays it."""


class PromptWalk:
    """The prompt sets of ``files``, which are read at once. Raises DataError for a file that is not a prompt set."""

    def __init__(self, files: Sequence[Path], *, longest_prompt_chars: int) -> None:
        sets = [read_prompt_set(path, longest_prompt_chars=longest_prompt_chars) for path in files]
        self._sets = {prompts.name: prompts for prompts in sets}
        self._held_out: dict[tuple[str, ...], PromptSet] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        return [*self._sets, HELD_OUT]

    def progress(
        self,
        name: str,
        contenders: Sequence[Contender],
        model: str,
        journal: Journal,
        judged: JudgedPrompts,
        login: str | None,
        session: str,
    ) -> tuple[PromptSet, Progress]:
        """Return a set and the voter's progress in it for these contenders.

        Reads MLflow. Raises SessionError, TrackingError.
        """
        from gradio_app.registry_client import registry_client

        client = registry_client()
        versions = tuple(self._version(client, model, contender) for contender in contenders)
        prompts = self._sets.get(name) or self._rows(client, model, versions)
        voter = journal.voter(login)
        done = judged.of(voter, session, frozenset(versions))
        return prompts, progress(prompts, done, voter, session)

    def _rows(self, client: MlflowClient, model: str, versions: tuple[str, ...]) -> PromptSet:
        proven = [version for version in versions if version != BASE]
        if not proven:
            raise SessionError("Neither side is a version of the registered model, so there are no held-out rows.")
        with self._lock:
            if versions not in self._held_out:
                try:
                    self._held_out[versions] = held_out_set(client, model, proven[0], others=proven[1:])
                except FinetuneError as error:
                    raise SessionError(f"There are no held-out rows to use. {error}") from error
            return self._held_out[versions]

    @staticmethod
    def _version(client: MlflowClient, model: str, contender: Contender) -> str:
        """Return the version that an alias points to now, or ``base`` for a contender that is not a version."""
        if contender.model.startswith(f"{model}@"):
            from mlflow_finetune_plugin.store.registry import find_model

            uri = find_model(client, f"models:/{contender.model}").uri
            return uri.rpartition("/")[2]
        if contender.model.startswith(f"{model}/"):
            return contender.model.rpartition("/")[2]
        return BASE


def next_prompt(prompts: PromptSet, voter_progress: Progress) -> Prompt:
    """Return the next prompt for a session. Raises SessionError where all are judged."""
    if voter_progress.next is None:
        raise SessionError(voter_progress.sentence)
    return Prompt(
        text=voter_progress.next.messages[-1]["content"],
        reference=voter_progress.next.reference,
        prompt_set=prompts.name,
        messages=voter_progress.next.messages,
    )
