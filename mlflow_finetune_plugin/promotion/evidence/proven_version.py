"""A registered version as the gate reads it from MLflow: its tags, and the proof in its training run."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_finetune_plugin.config.sections import DataSettings
from mlflow_finetune_plugin.errors import GateError, MoveError, TrackingError, in_short
from mlflow_finetune_plugin.evaluation.metric_modules import REWARD
from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.evidence import Forgetting
from mlflow_finetune_plugin.promotion.evidence import held_out
from mlflow_finetune_plugin.promotion.evidence.held_out import HeldOut
from mlflow_finetune_plugin.promotion.written_policy import WrittenPolicy
from mlflow_finetune_plugin.rewards import RewardSettings, rewards_digest
from mlflow_finetune_plugin.rewards.user_files import names_file, split_file
from mlflow_finetune_plugin.store.names import (
    ADAPTER_DIGEST_TAG,
    BASE_DIGEST_TAG,
    FORGETTING,
    FORGETTING_HIGH,
    FORGETTING_LOW,
    FORGETTING_TABLE,
    FORGETTING_TAG,
    GATE_DIGEST_TAG,
    GATE_FOLDER,
    HELD_OUT_FOLDER,
    HELD_OUT_TABLE,
    HELD_OUT_TAG,
    KIND_TAG,
    PROOF_TAG,
    RECORDS_FOLDER,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repo import ArtifactRepository


@dataclass(frozen=True)
class ProvenVersion:
    """A registered version with its proof.

    Args:
        name: The registered model.
        number: The version.
        run_id: The training run; None where it was deleted.
        tags: The version's tags.
        run_tags: The run's tags; empty without a run.
        metrics: The run's last metrics; empty without a run.
        artifact_uri: The root of the run's artifacts; None without a run. They are read when they are needed.
        tracking_uri: The server that the run is on.
    """

    name: str
    number: str
    run_id: str | None
    tags: Mapping[str, str]
    run_tags: Mapping[str, str]
    metrics: Mapping[str, float]
    artifact_uri: str | None = field(repr=False)
    tracking_uri: str = field(repr=False)

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"

    @property
    def adapter_digest(self) -> str:
        return self.tags[ADAPTER_DIGEST_TAG]

    @property
    def is_run_s_own(self) -> bool:
        """Whether the run's proof measured this adapter. A converted version shares the run of its original."""
        return self.run_tags.get(ADAPTER_DIGEST_TAG) == self.adapter_digest

    @cached_property
    def policy(self) -> WrittenPolicy | None:
        """The policy that the training recorded; None where it recorded none."""
        path = self._artifact(f"{GATE_FOLDER}/policy.json")
        tagged = self.run_tags.get(GATE_DIGEST_TAG)
        policy = None
        if path is not None:
            policy = WrittenPolicy.from_json(path.read_text(encoding="utf-8"), f"{self.uri}'s policy")
        if tagged is not None and (policy is None or policy.digest != tagged):
            what = "is gone" if policy is None else f"has the digest {policy.digest[:12]}"
            raise GateError(
                f"{self.uri}: its run recorded the policy {tagged[:12]}, but the file {what}; "
                "fix: find out who changed it"
            )
        return policy

    @cached_property
    def held_out(self) -> HeldOut | None:
        """The held-out rows of the run; None where it has none."""
        text = self._verified(held_out.FILE, HELD_OUT_TAG)
        return None if text is None else held_out.read_held_out(text, f"{self.uri}'s {held_out.FILE}")

    @cached_property
    def proof_table(self) -> Mapping[str, object] | None:
        """The table of the proof with both answers to each row; None where the run has none."""
        text = self._verified(HELD_OUT_TABLE, PROOF_TAG)
        return None if text is None else dict(json.loads(text))

    @cached_property
    def trained_rows(self) -> tuple[frozenset[int], int] | None:
        """Hashes of the rows that it was trained on, and their seed; None where the run has no record of them."""
        hashes, seed = self._artifact("finetune/trained_rows.npy"), self._artifact("finetune/trained_rows.json")
        if hashes is None or seed is None:
            return None
        try:
            content = json.loads(seed.read_text(encoding="utf-8"))
            return frozenset(int(value) for value in np.load(hashes, allow_pickle=False)), int(content["seed"])
        except (ValueError, TypeError, KeyError, EOFError) as error:
            raise GateError(
                f"{self.uri}: the record of the rows that it was trained on is broken: {error}; fix: train it again"
            ) from error

    @cached_property
    def data_settings(self) -> DataSettings | None:
        """The recipe's ``data`` section as the training run resolved it; None where the run or its config is gone."""
        path = self._artifact(f"{RECORDS_FOLDER}/config.json")
        if path is None:
            return None
        try:
            return DataSettings.model_validate(json.loads(path.read_text(encoding="utf-8"))["data"])
        except (ValueError, KeyError, TypeError) as error:
            raise GateError(
                f"{self.uri}: the data section of its run's config.json cannot be read: {in_short(error)}; "
                "fix: train it again"
            ) from error

    @cached_property
    def rewards(self) -> list[RewardSettings]:
        """The parts of the reward of its training, with the files that its run recorded.

        Raises GateError where they are not those that scored the answers of its proof.
        """
        path = self._artifact(f"{RECORDS_FOLDER}/config.json")
        try:
            parts = json.loads(path.read_text(encoding="utf-8"))["options"]["rewards"] if path is not None else []
            rewards = [RewardSettings.model_validate(self._with_recorded_file(part)) for part in parts]
        except (ValueError, KeyError, TypeError) as error:
            raise GateError(
                f"{self.uri}: the rewards of its run cannot be read: {in_short(error)}; fix: train it again"
            ) from error
        recorded = self.held_out.metrics.get(REWARD) if self.held_out is not None else None
        if not rewards or rewards_digest(rewards) != recorded:
            raise GateError(
                f"{self.uri}: its run's record does not hold the rewards that scored its proof; fix: train it again, or "
                "gain.metric: a metric of references, such as exact_match"
            )
        return rewards

    def _with_recorded_file(self, part: dict[str, Any]) -> dict[str, Any]:
        """Return a part of a reward whose Python file is the one that the run recorded."""
        key = next((key for key in ("python", "scorer") if part.get(key) and names_file(part[key])), None)
        if key is None:
            return part
        file, name = split_file(part[key])
        path = self._artifact(f"{RECORDS_FOLDER}/{Path(file).name}")
        if path is None:
            raise GateError(f"{self.uri}: its run has no file {Path(file).name} of its rewards; fix: train it again")
        return {**part, key: f"{path}:{name}" if name else str(path)}

    @property
    def forgetting(self) -> Forgetting | Interval | None:
        """Nats per token over the base, as its run measured it; None where its run did not.

        It is the nats of each text, or the interval of the run's proof, for runs of version 0.1, which kept no texts.
        """
        if not self.is_run_s_own:
            return None
        text = self._verified(FORGETTING_TABLE, FORGETTING_TAG)
        if text is not None:
            return _text_forgetting(text, f"{self.uri}'s {FORGETTING_TABLE}")
        if FORGETTING_TAG in self.run_tags:
            raise GateError(f"{self.uri}: its run recorded {FORGETTING_TABLE}, but it is gone; fix: train it again")
        ends = [self.metrics.get(name) for name in (FORGETTING, FORGETTING_LOW, FORGETTING_HIGH)]
        if None in ends:
            return None
        value, low, high = (_unbounded(float(end)) for end in ends if end is not None)
        return Interval(value, low, high, method="of the training run's proof")

    def regression_rows(self, name: str) -> HeldOut:
        """Return the rows of a regression file as they were when the run began.

        Raises GateError when they were changed.
        """
        path = self._artifact(f"{GATE_FOLDER}/{name}.json")
        _, digest = self.policy.files.get(name, ("", "")) if self.policy is not None else ("", "")
        if path is None or not digest:
            raise GateError(f"{self.uri}: its run has no rows of {name}; fix: train it again")
        rows = held_out.read_held_out(path.read_text(encoding="utf-8"), f"{self.uri}'s {name}")
        if rows.digest != digest:
            raise GateError(
                f"{self.uri}: {name} is not the file that its policy was recorded with; fix: find out who changed it"
            )
        return rows

    def metric_file(self, name: str) -> str:
        """Return the name or path by which a metric can be loaded here; a metric file is part of the proof."""
        if not name.endswith(".py"):
            return name
        path = self._artifact(f"{HELD_OUT_FOLDER}/{name}")
        if path is None:
            raise GateError(f"{self.uri}: its run has no metric file {name}; fix: train it again")
        digest = self.held_out.metrics.get(name) if self.held_out is not None else None
        if held_out.file_digest(path) != digest:
            raise GateError(
                f"{self.uri}: {name} is not the file that its run measured with; fix: find out who changed it"
            )
        return str(path)

    def _verified(self, file: str, tag: str) -> str | None:
        """Return a file of the proof; None where it is gone.

        Raises GateError when its digest is not the one in the run's tag.
        """
        path = self._artifact(f"{HELD_OUT_FOLDER}/{file}")
        if path is None:
            return None
        tagged, digest = self.run_tags.get(tag), held_out.file_digest(path)
        if tagged != digest:
            raise GateError(
                f"{self.uri}: its run recorded {file} as {str(tagged)[:12]}, but it is {digest[:12]}; "
                "fix: find out who changed it"
            )
        return path.read_text(encoding="utf-8")

    @cached_property
    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="gate-")

    @cached_property
    def _run_files(self) -> ArtifactRepository:
        """The run's artifacts. MLflow's client would read the run and search the logged models again for each file."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(str(self.artifact_uri), tracking_uri=self.tracking_uri)

    def _artifact(self, path: str) -> Path | None:
        """Return a file of the run; None where the run or the file is gone."""
        if self.artifact_uri is None:
            return None
        try:
            listed = {file.path for file in self._run_files.list_artifacts(str(Path(path).parent))}
            if path not in listed:
                return None
            return Path(self._run_files.download_artifacts(path, self._scratch.name))
        except Exception as error:  # each kind of artifact store raises different errors
            raise TrackingError(f"{self.uri}: its proof cannot be read: {in_short(error)}") from error


def _unbounded(end: float) -> float:
    """Undo what SQL stores do: they store an infinite metric as the largest float."""
    return math.copysign(math.inf, end) if abs(end) >= sys.float_info.max else end


def _text_forgetting(text: str, what: str) -> Forgetting:
    try:
        texts = [(int(entry["tokens"]), float(entry["base"]), float(entry["adapter"])) for entry in json.loads(text)]
    except (ValueError, TypeError, KeyError) as error:
        raise GateError(f"{what} cannot be read: {in_short(error)}; fix: train it again") from error
    return Forgetting(
        row_ids=tuple(str(number) for number in range(len(texts))),
        nats_per_token=tuple((adapter - base) / max(tokens, 1) for tokens, base, adapter in texts),
        tokens=tuple(float(tokens) for tokens, _, _ in texts),
    )


def read_version(client: MlflowClient, name: str, number: str) -> ProvenVersion:
    """Read a registered version and its run.

    Raises:
        MoveError: There is no such version, or this package did not register it.
        TrackingError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise MoveError(f"{name}: no version {number}; fix: name one that the registry has") from error
        raise TrackingError(f"{name}/{number}: the registry failed: {in_short(error)}") from error
    tags = dict(version.tags)
    if ADAPTER_DIGEST_TAG not in tags or BASE_DIGEST_TAG not in tags:
        raise MoveError(
            f"{name}/{number}: was not registered by mlflow-finetune, so it has no proof; fix: name another version"
        )
    run_tags: dict[str, str] = {}
    metrics: dict[str, float] = {}
    artifact_uri: str | None = None
    run_id = version.run_id or None
    if run_id is not None:
        try:
            run = client.get_run(run_id)
            run_tags, metrics = dict(run.data.tags), dict(run.data.metrics)
            artifact_uri = run.info.artifact_uri
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise TrackingError(f"{name}/{number}: its run cannot be read: {in_short(error)}") from error
            run_id = None
    return ProvenVersion(name, str(version.version), run_id, tags, run_tags, metrics, artifact_uri, client.tracking_uri)


def check_comparable(candidate: ProvenVersion, champion: ProvenVersion) -> None:
    """Check that two versions have the same base, are both reward models or neither, and differ. Raises MoveError.

    Their objectives may differ: preferences and rewards usually continue a version that imitates answers.
    """
    for tag, what in ((BASE_DIGEST_TAG, "base"), (KIND_TAG, "kind of model")):
        if candidate.tags.get(tag) != champion.tags.get(tag):
            raise MoveError(
                f"{candidate.uri} and {champion.uri} do not have the same {what} ({str(candidate.tags.get(tag))[:12]}, "
                f"{str(champion.tags.get(tag))[:12]}), so a policy cannot compare their answers; "
                f"fix: register it under another name, or set the alias by hand"
            )
    if candidate.adapter_digest == champion.adapter_digest:
        raise MoveError(
            f"{candidate.uri} and {champion.uri} hold the same adapter; fix: nothing, or name another version"
        )
