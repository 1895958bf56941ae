"""Metrics by name or file: every ``.py`` in ``metrics/`` is packaged, any other path is the user's own.

A user's file is an ``evaluate`` metric script, loaded with ``evaluate.load`` and never looked up on a hub. It may say
``higher_is_better = False`` (default: more is better) and ``is_binary = True`` (default: no). If it offers
``row_statistics(predictions, references)`` and ``score(sums)`` as the packaged ones do, its interval comes from those;
otherwise ``compute`` must return its value under the file's stem or as the only number, and the interval comes from
computing it again on bootstrap resamples of the rows.

Importing this module, and ``check_metric_name``, cost no more than the standard library.
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


@dataclass(frozen=True)
class MetricModule:
    """A loaded metric and what the comparison needs to know about it."""

    name: str
    metric: Any
    higher_is_better: bool
    is_binary: bool
    scores_single_rows: bool
    """One row alone has a meaningful score (token F1), in contrast to a corpus score (BLEU)."""
    reads_likelihoods: bool
    """Takes nats and token counts of the reference answers instead of texts."""
    has_row_statistics: bool

    def row_statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> NDArray[np.float64]:
        """Additive statistics per row, (n, k): their sum over any rows determines the score of those rows."""
        import numpy as np

        statistics = np.asarray(self.metric.row_statistics(predictions, references), dtype=np.float64)
        if statistics.ndim != 2 or len(statistics) != len(predictions):
            raise FinetuneError(
                f"metric {self.name!r}: row_statistics gave shape {statistics.shape} for {len(predictions)} rows; "
                "fix: return an array of shape (rows, k)"
            )
        return statistics

    def score(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of summed statistics, (..., k) -> (...)."""
        import numpy as np

        return np.asarray(self.metric.score(sums), dtype=np.float64)

    def compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> float:
        """The metric's value on these rows, through ``evaluate``'s own ``compute``."""
        return _single_value(self.name, self.metric.compute(predictions=predictions, references=references))


def check_metric_name(name_or_path: str) -> None:
    """Raise unless ``name_or_path`` is a packaged metric or an existing ``.py`` file. Standard library only."""
    if name_or_path in PACKAGED:
        return
    if name_or_path.endswith(".py"):
        if not Path(name_or_path).is_file():
            raise FinetuneError(
                f"no metric file {name_or_path!r}; fix: give the path of an existing evaluate metric script"
            )
        return
    nearest = difflib.get_close_matches(name_or_path, PACKAGED, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    raise FinetuneError(
        f"no metric {name_or_path!r}{hint}; fix: pick one of: {', '.join(PACKAGED)}, or a path to a metric file"
    )


def load_metric(name_or_path: str) -> MetricModule:
    """Load a packaged metric by name, or the user's own by the path of its ``.py`` file; no network either way."""
    check_metric_name(name_or_path)
    path = _FOLDER / f"{name_or_path}.py" if name_or_path in PACKAGED else Path(name_or_path).resolve()
    metric = _load_module(name_or_path, path)
    has_row_statistics = hasattr(metric, "row_statistics")
    if has_row_statistics and not hasattr(metric, "score"):
        raise FinetuneError(
            f"metric file {name_or_path!r} has row_statistics but no score(sums); fix: add it, or drop both"
        )
    return MetricModule(
        name=path.stem,
        metric=metric,
        higher_is_better=bool(getattr(metric, "higher_is_better", True)),
        is_binary=bool(getattr(metric, "is_binary", False)),
        scores_single_rows=has_row_statistics and bool(getattr(metric, "scores_single_rows", False)),
        reads_likelihoods=bool(getattr(metric, "reads_likelihoods", False)),
        has_row_statistics=has_row_statistics,
    )


def _load_module(name_or_path: str, path: Path) -> Any:
    try:
        import evaluate

        return evaluate.load(str(path), keep_in_memory=True)
    except ImportError as error:
        if name_or_path in PACKAGED:
            raise MissingExtraError(
                f"metric {name_or_path!r} misses a package: {error}; fix: pip install 'mlflow-finetune[train]'"
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
            f"metric {name!r} returned {len(numbers)} numbers ({', '.join(numbers) or 'none'}) and none is called "
            f"{name!r}; fix: return its value under {name!r}, the file's own name"
        )
    return next(iter(numbers.values()))


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, (str, bool)) and not math.isnan(float(value))
    except (TypeError, ValueError):
        return False
