"""Which version a promotion judges, and whether another one did better on the same held-out rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import ConfigError, GateError, MoveError
from mlflow_finetune_plugin.evaluation.metric_modules import MetricModule
from mlflow_finetune_plugin.promotion.evidence.answers import metric_of
from mlflow_finetune_plugin.promotion.evidence.proven_version import ProvenVersion, read_version
from mlflow_finetune_plugin.store.model_ref import find_model_ref
from mlflow_finetune_plugin.store.names import (
    ADAPTER_DIGEST_TAG,
    BASE_DIGEST_TAG,
    CHALLENGER,
    CHAMPION,
    EVAL_ADAPTER,
    HELD_OUT_TAG,
    KIND_TAG,
    PREVIOUS,
    PROMOTED_TAG,
    VERDICT_TAG,
)
from mlflow_finetune_plugin.store.registered_model import read_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_MOST_VERSIONS = 20
"""Newest versions that are compared with the challenger, each with one or two calls to the tracking server."""


@dataclass(frozen=True)
class Candidate:
    """The version to judge.

    Args:
        name: The registered model.
        number: The version.
        has_alias: Whether the version has the requested alias already.
        choice: Why this version is judged; empty where the request names it.
        better: A sentence that names a version with a better score on the same rows; empty where there is none.
        looks: How many versions it was chosen from by their scores, itself included.
    """

    name: str
    number: str
    has_alias: bool
    choice: str = ""
    better: str = ""
    looks: int = 1

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(note for note in (self.better,) if note)


def whole_model(client: MlflowClient, model: str) -> str:
    """Return the name of a registered model, for commands that work on all of its versions.

    Raises:
        ConfigError: ``model`` is not a valid name, or names a version or another alias than champion.
    """
    ref = find_model_ref(client, model)
    if ref.is_whole_model or ref.alias == CHAMPION:
        return ref.name
    raise ConfigError([f"{model}: names one version, and this command works on the whole model; fix: {ref.name}"])


def choose_candidate(client: MlflowClient, model: str, version: str | None, alias: str) -> Candidate:
    """Return the version that the request names. Where it names none, return the challenger, or the best while there is no champion.

    The best of many versions on the same rows is partly luck, so it does not replace the challenger of a champion: ``better``
    names it, and the user decides. While no version has the alias, the challenger would be compared with the base alone, and
    the newest version could pass a better one.

    Args:
        model: ``my-bot``, ``my-bot/3``, ``my-bot@challenger`` or a ``models:/`` URI.
        version: A version number; None means what ``model`` says.
        alias: The alias that would be moved.

    Raises:
        ConfigError: ``model`` is not a name, or names a version besides ``version``.
        MoveError: There is no such model, version or alias, or no version can be promoted to ``alias``.
    """
    ref = find_model_ref(client, model)
    if version is not None and not ref.is_whole_model:
        raise ConfigError([f"{model}: names a version besides version {version}; fix: leave one of the two out"])
    name = ref.name
    aliases, _ = read_model(client, name)
    if alias in (PREVIOUS, "latest") or re.fullmatch(r"[vV]\d+", alias):
        raise MoveError(f"{name}: no version can be promoted to {alias!r}; fix: --to {CHAMPION}, or another alias")
    is_default = version is None and ref.is_whole_model
    number = version or ref.version or aliases.get(ref.alias or CHALLENGER)
    if number is None:
        raise MoveError(f"{name}: has no alias {ref.alias or CHALLENGER!r}; fix: --version N")
    number = number.lstrip("0") or number
    has_alias = aliases.get(alias) == number
    if not is_default:
        return Candidate(name, number, has_alias)
    choice = f"version {number} was chosen, because it is the {CHALLENGER} (the newest version that scored better than its base)"
    try:
        better = find_better(client, read_version(client, name, number))
    except (MoveError, GateError):  # judging the version reports what is wrong with it
        better = None
    if better is None:
        return Candidate(name, number, has_alias, choice)
    if alias not in aliases:
        choice = f"version {better.number} was chosen, because no version is {alias} yet, and version {better.scores}"
        return Candidate(name, better.number, False, choice, looks=better.compared)
    hint = f"version {better.scores}; to judge it: mlflow-finetune promote {name} --version {better.number}"
    return Candidate(name, number, has_alias, choice, hint)


@dataclass(frozen=True)
class BetterVersion:
    """A version with the best score on the held-out rows of another one.

    ``scores`` compares the two in words, ``compared`` counts the versions with a score, the other one included.
    """

    number: str
    scores: str
    compared: int


def find_better(client: MlflowClient, candidate: ProvenVersion) -> BetterVersion | None:
    """Return the version with the best score on the candidate's held-out rows.

    Only versions that were proven on the same rows, were never promoted and were not rejected are compared.

    Returns:
        None where the candidate is the best of them, or its proof holds no score.
    """
    rows = candidate.held_out
    if rows is None or not candidate.is_run_s_own:
        return None
    policy = candidate.policy
    gain = policy.policy.gain if policy is not None else None
    metric = metric_of(gain.metric if gain is not None else None, candidate, rows)
    score = candidate.metrics.get(f"{EVAL_ADAPTER}{metric.name}")
    if score is None:
        return None
    best_number, best, compared = candidate.number, score, 1
    for version in _comparable(client, candidate):
        other = _score(client, version, candidate, metric)
        compared += other is not None
        if other is not None and (other > best if metric.higher_is_better else other < best):
            best_number, best = str(version.version), other
    if best_number == candidate.number:
        return None
    return BetterVersion(
        best_number,
        f"{best_number} did better on the same held-out rows: {metric.name} {best:.4g}, "
        f"version {candidate.number} {score:.4g}",
        compared,
    )


def _comparable(client: MlflowClient, candidate: ProvenVersion) -> list[ModelVersion]:
    quote = '"' if "'" in candidate.name else "'"
    versions = client.search_model_versions(
        f"name = {quote}{candidate.name}{quote}", max_results=_MOST_VERSIONS, order_by=["version_number DESC"]
    )
    same = (BASE_DIGEST_TAG, KIND_TAG)
    return [
        version
        for version in versions
        if str(version.version) != candidate.number
        and version.run_id
        and all(version.tags.get(tag) == candidate.tags.get(tag) for tag in same)
        and PROMOTED_TAG not in version.tags
        and not version.tags.get(VERDICT_TAG, "").startswith("reject")
    ]


def _score(client: MlflowClient, version: ModelVersion, candidate: ProvenVersion, metric: MetricModule) -> float | None:
    """Return the version's score on the candidate's held-out rows; None where it was proven on others."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(version.run_id).data
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    is_same_proof = run.tags.get(HELD_OUT_TAG) == candidate.run_tags.get(HELD_OUT_TAG)
    # A converted version shares the run of the version it was made from, whose score is not its own.
    is_own_run = run.tags.get(ADAPTER_DIGEST_TAG) == version.tags.get(ADAPTER_DIGEST_TAG)
    return run.metrics.get(f"{EVAL_ADAPTER}{metric.name}") if is_same_proof and is_own_run else None
