"""The policy as a training run records it, with its regression rows, before any evidence exists."""

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
from mlflow_finetune_plugin.gate.policy import RULES, GatePolicy, content_digest
from mlflow_finetune_plugin.promotion.evidence.held_out import file_digest, rows_digest


@dataclass(frozen=True)
class WrittenPolicy:
    """A recorded policy.

    Args:
        policy: The policy; its regressions name entries of ``files``, never paths of a machine.
        files: Name -> SHA-256 of the file, and SHA-256 of its rows as rendered for this version.
        recorded_digest: The digest that was recorded, perhaps under earlier rules; None for a policy that was not recorded.
    """

    policy: GatePolicy
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    recorded_digest: str | None = field(default=None, compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the policy and of the files that it names."""
        return self.recorded_digest or _digest(self.policy.digest(), self.files)

    def to_json(self) -> str:
        content = {"digest": self.digest, "files": dict(self.files), "gate": self.policy.model_dump(mode="json")}
        return json.dumps(content, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, what: str) -> WrittenPolicy:
        """Read what ``to_json`` wrote. ``what`` names it in errors. Raises GateError when its digest does not match."""
        try:
            content: dict[str, Any] = json.loads(text)
            files = {name: (str(file), str(rows)) for name, (file, rows) in content["files"].items()}
            written = cls(GatePolicy.model_validate(content["gate"]), files, str(content["digest"]))
            digests = [_digest(content_digest(content["gate"], rules), files) for rules in range(RULES, 0, -1)]
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise GateError(f"{what}: is not a policy: {error}; fix: train it again") from error
        if written.digest not in digests:
            raise GateError(
                f"{what}: its recorded digest is {written.digest[:12]}, that of its contents {digests[0][:12]}; "
                "fix: find out who changed it"
            )
        return written


def write_policy(policy: GatePolicy, rows: Mapping[str, Sequence[EvalRow]]) -> WrittenPolicy:
    """Return a recipe's policy for the record. ``rows`` are those of its regression files, by path."""
    files = {
        Path(path).name: (_file_digest(path), rows_digest(file_rows, answer_room(file_rows)))
        for path, file_rows in rows.items()
    }
    return WrittenPolicy(_with_names(policy), files)


def policy_now(policy: GatePolicy, trained: WrittenPolicy | None) -> WrittenPolicy:
    """Return a recipe's current policy for a version that was trained under another one.

    Args:
        policy: The current policy, with absolute paths.
        trained: The policy that the training recorded.

    Raises:
        GateError: A regression file is new or was changed. Bounds may change, but the version has no rows of that file.
    """
    files: dict[str, tuple[str, str]] = {}
    known = trained.files if trained is not None else {}
    for path in dict.fromkeys(regression.data for regression in policy.regressions):
        name = Path(path).name
        if name not in known or known[name][0] != _file_digest(path):
            raise GateError(
                f"{path}: is not what the training run recorded{' as ' + name if name in known else ''}; "
                "fix: train a version with it, or judge by the recorded policy"
            )
        files[name] = known[name]
    return WrittenPolicy(_with_names(policy), files)


def _digest(policy_digest: str, files: Mapping[str, tuple[str, str]]) -> str:
    content = [policy_digest, sorted((name, file) for name, (file, _) in files.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _with_names(policy: GatePolicy) -> GatePolicy:
    regressions = [
        regression.model_copy(update={"data": Path(regression.data).name}) for regression in policy.regressions
    ]
    return policy.model_copy(update={"regressions": regressions})


def _file_digest(path: str) -> str:
    """Return the SHA-256 (hex) of a file. Raises GateError."""
    try:
        return file_digest(path)
    except OSError as error:
        raise GateError(f"regression file {path}: {error.strerror}; fix: name a file of this machine") from error
