"""Load metrics by name from ``metrics/``, or by path from a user's own file.

A user's file is an ``evaluate`` metric script. It is loaded with ``evaluate.load`` and never searched on a hub. It may set
``higher_is_better = False`` and ``is_binary = True``. If it has ``row_statistics(predictions, references)`` and
``score(sums)`` as the packaged metrics do, its interval is computed from them. Otherwise ``compute`` must return its value
under the file's stem or as the only number, and it is computed again on bootstrap resamples of the rows.

Importing this module and calling ``check_metric_name`` needs the standard library only.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import FinetuneError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FOLDER = Path(__file__).parent / "metrics"

PACKAGED: tuple[str, ...] = tuple(sorted(p.stem for p in _FOLDER.glob("*.py") if not p.stem.startswith("_")))


REWARD = "reward"
"""The metric of an objective with rewards, which reads the rewards of the answers instead of texts."""


@dataclass(frozen=True)
class MetricModule:
    """A loaded metric and its properties."""

    name: str
    metric: Any
    higher_is_better: bool
    is_binary: bool
    scores_single_rows: bool
    """Whether a single row has a meaningful score (token F1), unlike a corpus score (BLEU)."""
    reads_likelihoods: bool
    """Whether it reads nats and token counts of the reference answers instead of texts."""
    has_row_statistics: bool
    reads_pairs: bool = False
    """Whether it reads by how many nats the better answer of a pair is more likely than the worse one."""
    reads_rewards: bool = False
    """Whether it reads the rewards of the answers, NaN where a part of the reward does not apply."""

    def row_statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> NDArray[np.float64]:
        """Return additive statistics, (rows, k): their sum over any rows determines the score of those rows."""
        import numpy as np

        statistics = np.asarray(self.metric.row_statistics(predictions, references), dtype=np.float64)
        if statistics.ndim != 2 or len(statistics) != len(predictions):
            raise FinetuneError(
                f"metric {self.name!r}: row_statistics returned shape {statistics.shape} for {len(predictions)} rows; "
                "fix: return an array of shape (rows, k)"
            )
        return statistics

    def score(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scores of summed statistics, (..., k) -> (...)."""
        import numpy as np

        return np.asarray(self.metric.score(sums), dtype=np.float64)

    def compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> float:
        """Return the metric's value on these rows, computed by ``evaluate``."""
        return _single_value(self.name, self.metric.compute(predictions=predictions, references=references))


def is_reward(name: str) -> bool:
    """Return whether this is the mean reward of the answers (``reward``), or that of one part (``reward/NAME``)."""
    return name == REWARD or name.startswith(f"{REWARD}/")


class _MeanReward:
    """The mean of the answers' rewards; a reward that is missing has no weight."""

    def row_statistics(self, predictions: Sequence[float], references: Sequence[float]) -> NDArray[np.float64]:
        import numpy as np

        values = np.asarray(predictions, dtype=np.float64)
        has_value = ~np.isnan(values)
        return np.stack([np.where(has_value, values, 0.0), has_value.astype(np.float64)], axis=1)  # (n, 2)

    def score(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        import numpy as np

        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(sums[..., 0] / sums[..., 1])


def _reward_metric(name: str) -> MetricModule:
    return MetricModule(
        name=name,
        metric=_MeanReward(),
        higher_is_better=True,
        is_binary=False,
        scores_single_rows=True,
        reads_likelihoods=False,
        has_row_statistics=True,
        reads_rewards=True,
    )


def check_metric_name(name_or_path: str) -> None:
    """Raise FinetuneError unless ``name_or_path`` is a packaged metric, a reward or an existing ``.py`` file."""
    if name_or_path in PACKAGED or is_reward(name_or_path):
        return
    if name_or_path.endswith(".py"):
        if not Path(name_or_path).is_file():
            raise FinetuneError(
                f"the metric file {name_or_path!r} does not exist; fix: use the path of an evaluate metric script"
            )
        return
    nearest = difflib.get_close_matches(name_or_path, PACKAGED, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    raise FinetuneError(
        f"{name_or_path!r} is not a known metric{hint}; fix: pick one of: {', '.join(PACKAGED)}, or a path to a metric file"
    )


def load_metric(name_or_path: str) -> MetricModule:
    """Load a packaged metric by name, or a user's metric by the path of its ``.py`` file, without network access."""
    check_metric_name(name_or_path)
    if is_reward(name_or_path):
        return _reward_metric(name_or_path)
    path = _FOLDER / f"{name_or_path}.py" if name_or_path in PACKAGED else Path(name_or_path).resolve()
    metric = _load_module(name_or_path, path)
    has_row_statistics = hasattr(metric, "row_statistics")
    if has_row_statistics and not hasattr(metric, "score"):
        raise FinetuneError(
            f"metric file {name_or_path!r} has row_statistics but no score(sums); fix: add score, or remove both"
        )
    return MetricModule(
        name=path.stem,
        metric=metric,
        higher_is_better=bool(getattr(metric, "higher_is_better", True)),
        is_binary=bool(getattr(metric, "is_binary", False)),
        scores_single_rows=has_row_statistics and bool(getattr(metric, "scores_single_rows", False)),
        reads_likelihoods=bool(getattr(metric, "reads_likelihoods", False)),
        has_row_statistics=has_row_statistics,
        reads_pairs=bool(getattr(metric, "reads_pairs", False)),
    )


def _load_module(name_or_path: str, path: Path) -> Any:
    try:
        import evaluate

        return evaluate.load(str(path), keep_in_memory=True)
    except ImportError as error:
        if name_or_path in PACKAGED:
            raise MissingExtraError(
                f"metric {name_or_path!r} needs a package that is not installed: {error}; fix: pip install 'mlflow-finetune[train]'"
            ) from error
        raise FinetuneError(
            f"metric file {name_or_path!r} cannot be imported: {error}; fix: install what it imports, and write one "
            "import per line (evaluate's scanner does not understand 'import a, b')"
        ) from error


def _single_value(name: str, result: Mapping[str, Any]) -> float:
    if name in result:
        return float(result[name])
    numbers = {key: float(value) for key, value in result.items() if _is_number(value)}
    if len(numbers) != 1:
        raise FinetuneError(
            f"metric {name!r} returned {len(numbers)} numbers ({', '.join(numbers) or 'none'}) and none is named "
            f"{name!r}; fix: return the value under the key {name!r}, the name of the file"
        )
    return next(iter(numbers.values()))


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, (str, bool)) and not math.isnan(float(value))
    except (TypeError, ValueError):
        return False
