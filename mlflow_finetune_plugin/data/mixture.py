"""Mix the tasks of a data set: choose how often each task's rows are drawn.

``proportional`` leaves the rows as they are. The others keep the total number of rows and give task i the share
n_i ** (1 / T) / sum_j n_j ** (1 / T) of them, where T is the temperature (arXiv 1910.10683, section 3.5.2) and ``equal`` is the
limit of a large T. Each task's rows are repeated in whole copies, and a seeded sample of them fills the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class TaskShare:
    """The rows of one task before and after mixing."""

    task: str
    rows: int
    drawn: int


@dataclass(frozen=True)
class Mixture:
    """The result of mixing: ``indices`` into the data set's rows in their order, int64, (drawn rows,)."""

    indices: np.ndarray
    tasks: tuple[TaskShare, ...]

    @property
    def is_unchanged(self) -> bool:
        return all(share.rows == share.drawn for share in self.tasks)


def tasks_of(rows: datasets.Dataset) -> pa.DictionaryArray:
    """Return the task of every row, after selections; 4 bytes per row."""
    column = rows.select_columns("task").with_format("arrow")[:]["task"]
    return column.dictionary_encode().unify_dictionaries().combine_chunks()


def rows_of(rows: datasets.Dataset, task: str) -> datasets.Dataset:
    """Return the rows of one task in their order."""
    tasks = tasks_of(rows)
    code = tasks.dictionary.index(task).as_py()
    return rows.select(np.flatnonzero(np.asarray(tasks.indices) == code))


def mix(tasks: pa.DictionaryArray, mixing: str, temperature: float, seed: int) -> Mixture:
    """Choose how often each row is drawn.

    Args:
        tasks: The task of every row.
        mixing: ``proportional``, ``equal`` or ``temperature``.
        temperature: T; used by ``temperature`` only.
        seed: Seed of the sample that fills a task's share.
    """
    of_row = np.asarray(tasks.indices)
    names = tasks.dictionary.to_pylist()
    counts = np.bincount(of_row, minlength=len(names))
    exponent = {"proportional": 1.0, "equal": 0.0, "temperature": 1.0 / temperature}[mixing]
    drawn = counts if exponent == 1.0 else _shares(counts, exponent)
    random = np.random.default_rng(seed)
    times = np.zeros(len(of_row), dtype=np.int64)
    for task, (count, target) in enumerate(zip(counts, drawn, strict=True)):
        rows = np.flatnonzero(of_row == task)
        times[rows] = target // count
        times[random.choice(rows, size=target % count, replace=False)] += 1
    shares = sorted(zip(names, counts, drawn, strict=True))
    return Mixture(
        np.repeat(np.arange(len(times)), times), tuple(TaskShare(str(name), int(n), int(d)) for name, n, d in shares)
    )


def _shares(counts: np.ndarray, exponent: float) -> np.ndarray:
    """Return the rows to draw of each task. They add up to all rows, and every task keeps at least one."""
    weights = counts.astype(np.float64) ** exponent
    exact = weights / weights.sum() * counts.sum()
    drawn = np.maximum(1, np.floor(exact).astype(np.int64))
    for task in np.argsort(drawn - exact, kind="stable")[: max(0, int(counts.sum() - drawn.sum()))]:
        drawn[task] += 1
    return drawn
