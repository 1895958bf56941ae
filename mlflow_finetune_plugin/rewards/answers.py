"""Score the answers of a proof, and what identifies the rewards that scored them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.rewards.combination import load_rewards
from mlflow_finetune_plugin.rewards.completion import Completion
from mlflow_finetune_plugin.rewards.settings import RewardSettings
from mlflow_finetune_plugin.rewards.user_files import split_file

if TYPE_CHECKING:
    import numpy as np

    from mlflow_finetune_plugin.evaluation.proof import ScoreAnswers
    from mlflow_finetune_plugin.evaluation.results import EvalRow


def rewards_digest(rewards: Sequence[RewardSettings]) -> str:
    """Return the SHA-256 (hex) of what decides a reward: the settings without the folders of files, and the files."""
    settings = [part.model_dump(mode="json") for part in rewards]
    for part in settings:
        for key in ("python", "scorer"):
            if part[key]:
                part[key] = Path(part[key]).name
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in reward_files(rewards)]
    return hashlib.sha256(json.dumps([settings, files]).encode()).hexdigest()


@contextmanager
def scoring(rewards: Sequence[RewardSettings]) -> Iterator[ScoreAnswers | None]:
    """Start what scores, and yield the function that scores the answers to held-out rows; None without rewards."""
    if not rewards:
        yield None
        return
    import numpy as np

    with load_rewards(rewards, Path.cwd()) as loaded:

        def score(rows: Sequence[EvalRow], answers: Sequence[str]) -> Mapping[str, np.ndarray]:
            completions = [
                Completion(list(row.messages), answer, json.loads(row.fields or "{}"), number)
                for number, (row, answer) in enumerate(zip(rows, answers, strict=True))
            ]
            scores = loaded.score(completions)
            columns = {"reward": scores.total, **{f"reward/{name}": values for name, values in scores.parts.items()}}
            return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}

        yield score


def is_harmless(part: RewardSettings) -> bool:
    """Return whether a part only compares texts: it runs no code, loads no model, and sends nothing to a server."""
    return part.grader is not None and _compares_texts(part.grader)


def _compares_texts(grader: Mapping[str, Any]) -> bool:
    if grader.get("type") == "multi":
        graders = grader.get("graders")
        return isinstance(graders, Mapping) and all(
            isinstance(inner, Mapping) and _compares_texts(inner) for inner in graders.values()
        )
    return grader.get("type") in ("string_check", "text_similarity")


def reward_files(rewards: Sequence[RewardSettings]) -> list[Path]:
    """Return the Python files that the parts name, each once."""
    named = [split_file(text)[0] for part in rewards for text in (part.python, part.scorer) if text]
    return [path for path in dict.fromkeys(map(Path, named)) if path.suffix == ".py" and path.is_file()]
