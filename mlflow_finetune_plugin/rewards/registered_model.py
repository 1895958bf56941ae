"""A registered reward model: check that it exists, and score with a copy of its files in a process without credentials."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from mlflow_finetune_plugin.errors import ConfigError, one_line
from mlflow_finetune_plugin.rewards.completion import Completion, PartScore
from mlflow_finetune_plugin.rewards.process import ScoringError, ScoringProcess, ScoringTarget
from mlflow_finetune_plugin.store import command_client, parse_model_ref


class RegisteredModelPart:
    """A version of a registered model. An alias is resolved once, when the part is checked or opened."""

    def __init__(self, uri: str, *, folder: Path, timeout_s: float, env: Collection[str]) -> None:
        self._uri = uri
        self._folder = folder
        self._env = env
        self._target = ScoringTarget("model", name=uri, timeout_s=timeout_s)
        self._version_uri: str | None = None
        self._files: str | None = None
        self._process: ScoringProcess | None = None

    def check(self, columns: Collection[str] | None) -> list[str]:
        """Return what is wrong; see ``RewardPart``. The model is not loaded."""
        try:
            self._resolve()
        except (ConfigError, ScoringError) as error:
            return error.problems if isinstance(error, ConfigError) else [str(error)]
        return []

    def _resolve(self) -> str:
        if self._version_uri is not None:
            return self._version_uri
        ref = parse_model_ref(self._uri)
        if ref.is_whole_model or not self._uri.startswith("models:/"):
            raise ConfigError([f"{self._uri!r} names no version; fix: use models:/NAME@ALIAS or models:/NAME/VERSION"])
        from mlflow.exceptions import MlflowException

        client = command_client()
        try:
            if ref.alias is not None:
                version = client.get_model_version_by_alias(ref.name, ref.alias).version
            else:
                version = client.get_model_version(ref.name, ref.version).version
        except MlflowException as error:
            raise ScoringError(
                f"the registry has no {ref}: {one_line(error)}; fix: correct the name, version or alias"
            ) from error
        self._version_uri = f"models:/{ref.name}/{version}"
        return self._version_uri

    def open(self) -> None:
        """Fetch the files and start the process; see ``RewardPart``."""
        if self._process is not None:
            return
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        self._files = tempfile.mkdtemp(prefix="reward-model-")
        try:
            path = download_artifacts(artifact_uri=self._resolve(), dst_path=self._files)
        except (MlflowException, OSError) as error:
            self.close()
            raise ScoringError(f"its files cannot be fetched: {one_line(error)}") from error
        self._process = ScoringProcess(dataclasses.replace(self._target, path=path), folder=self._folder, env=self._env)
        self._process.start()

    def close(self) -> None:
        """End the process and delete the copy."""
        if self._process is not None:
            self._process.close()
            self._process = None
        if self._files is not None:
            shutil.rmtree(self._files, ignore_errors=True)
            self._files = None

    def score(self, completions: Sequence[Completion], *, until_fault: bool = False) -> list[PartScore]:
        """Score the completions; see ``RewardPart``."""
        self.open()
        assert self._process is not None  # open() made it
        return self._process.score(completions, until_fault=until_fault)
