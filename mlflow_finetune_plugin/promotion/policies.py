"""The policy as a training run carries it: written down, with the files it names, before any evidence exists."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.policy import GatePolicy

FOLDER = "finetune/gate"
"""Of the training run's artifacts: ``policy.json`` and a copy of each regression file."""
TAG = "finetune.gate_digest"


@dataclass(frozen=True)
class WrittenPolicy:
    """``policy``: its regressions name files of ``files``, name -> sha256 of the contents; no path of any machine."""

    policy: GatePolicy
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 (hex) of the policy and of what its files hold."""
        content = [self.policy.digest(), sorted(self.files.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_json(self) -> str:
        content = {"digest": self.digest, "files": dict(self.files), "gate": self.policy.model_dump(mode="json")}
        return json.dumps(content, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, what: str) -> WrittenPolicy:
        """Raises GateError when it is not what its own digest says. ``what`` names it in the message."""
        try:
            content: dict[str, Any] = json.loads(text)
            found = cls(GatePolicy.model_validate(content["gate"]), dict(content["files"]))
            told = content["digest"]
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise GateError(f"{what}: is no policy: {error}; fix: train it again") from error
        if found.digest != told:
            raise GateError(
                f"{what}: its digest says {str(told)[:12]}, its contents {found.digest[:12]}; fix: find out who changed it"
            )
        return found


def write_policy(policy: GatePolicy) -> tuple[WrittenPolicy, dict[str, Path]]:
    """The policy of a recipe whose paths are absolute, and where its files are, by the names it is written with.

    Raises GateError for a file that cannot be read, and for two of the same name.
    """
    found: dict[str, Path] = {}
    for regression in policy.regressions:
        path = Path(regression.data)
        if found.setdefault(path.name, path) != path:
            raise GateError(f"gate.regressions: two files are named {path.name}; fix: rename one of them")
    try:
        digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}
    except OSError as error:
        raise GateError(
            f"gate.regressions: {error.filename}: {error.strerror}; fix: name a file of this machine"
        ) from error
    regressions = [one.model_copy(update={"data": Path(one.data).name}) for one in policy.regressions]
    return WrittenPolicy(policy.model_copy(update={"regressions": regressions}), digests), found
