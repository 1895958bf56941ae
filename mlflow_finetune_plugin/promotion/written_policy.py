"""The policy as a training run carries it: written down, with the rows it names, before any evidence exists."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.results import EvalRow, answer_room
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.promotion.held_out import file_digest, rows_digest


@dataclass(frozen=True)
class WrittenPolicy:
    """``policy``: its regressions name files of ``files``, name -> (sha256 of the file, sha256 of its rows as rendered for
    this version); no path of any machine.
    """

    policy: GatePolicy
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 (hex) of the policy and of the files that it names."""
        content = [self.policy.digest(), sorted((name, file) for name, (file, _) in self.files.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_json(self) -> str:
        content = {"digest": self.digest, "files": dict(self.files), "gate": self.policy.model_dump(mode="json")}
        return json.dumps(content, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, what: str) -> WrittenPolicy:
        """Raises GateError when it is not what its own digest says. ``what`` names it in the message."""
        try:
            content: dict[str, Any] = json.loads(text)
            found = cls(
                GatePolicy.model_validate(content["gate"]),
                {name: (str(file), str(rows)) for name, (file, rows) in content["files"].items()},
            )
            told = content["digest"]
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise GateError(f"{what}: is no policy: {error}; fix: train it again") from error
        if found.digest != told:
            raise GateError(
                f"{what}: its digest says {str(told)[:12]}, its contents {found.digest[:12]}; fix: find out who changed it"
            )
        return found


def write_policy(policy: GatePolicy, rows: Mapping[str, Sequence[EvalRow]]) -> WrittenPolicy:
    """The policy of a recipe, with the rows of its regression files by the paths that it has there."""
    files = {
        Path(path).name: (_file_digest(path), rows_digest(found, answer_room(found))) for path, found in rows.items()
    }
    return WrittenPolicy(_with_names(policy), files)


def policy_now(policy: GatePolicy, trained: WrittenPolicy | None) -> WrittenPolicy:
    """A recipe's policy of today, its paths absolute. Bounds may have changed since ``trained``; rows that no model was asked
    then cannot be added. Raises GateError.
    """
    files: dict[str, tuple[str, str]] = {}
    known = trained.files if trained is not None else {}
    for path in dict.fromkeys(regression.data for regression in policy.regressions):
        name = Path(path).name
        if name not in known or known[name][0] != _file_digest(path):
            raise GateError(
                f"{path}: is not what the training run wrote down{' as ' + name if name in known else ''}; "
                "fix: train a version with it, or judge by the policy as it was"
            )
        files[name] = known[name]
    return WrittenPolicy(_with_names(policy), files)


def _with_names(policy: GatePolicy) -> GatePolicy:
    regressions = [one.model_copy(update={"data": Path(one.data).name}) for one in policy.regressions]
    return policy.model_copy(update={"regressions": regressions})


def _file_digest(path: str) -> str:
    """sha256 (hex). Raises GateError."""
    try:
        return file_digest(path)
    except OSError as error:
        raise GateError(f"regression file {path}: {error.strerror}; fix: name a file of this machine") from error
