"""``ft.promote``, ``ft.rollback``, ``ft.history`` and ``ft.check_champion``: judge, move and watch the champion."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow_finetune_plugin.promotion.move_history import MoveHistory
    from mlflow_finetune_plugin.promotion.result import PromotionResult
    from mlflow_finetune_plugin.promotion.undo import RollbackResult
    from mlflow_finetune_plugin.watch.result import CheckResult


def promote(
    model: str,
    version: str | int | None = None,
    *,
    alias: str = "champion",
    policy: str | os.PathLike[str] | None = None,
    accept_new_policy: bool = False,
    base_model: str | None = None,
    trust_code: bool = False,
    endpoint: str | None = None,
    canary: str | None = None,
    step: str | None = None,
    least_answers: str | int | None = None,
    failures_at_most: str | float | None = None,
    dry_run: bool = False,
    on_progress: Callable[[str], None] = lambda line: None,
) -> PromotionResult:
    """Judge a version by its policy, and move the alias to it when the verdict is to promote.

    A version that has the alias already is success: its ``outcome`` is ``unchanged``.

    Args:
        model: ``my-bot``, ``my-bot/3``, ``my-bot@challenger`` or a ``models:/`` URI.
        version: None judges the version that ``model`` names, else the challenger, which is the newest version that scored better than its base.
        alias: The alias to move.
        policy: Folder of a project whose ``register.gate`` applies; None means the policy that the training recorded.
        accept_new_policy: Allow a policy that was changed after the training.
        base_model: Folder of the base model, when it has moved.
        trust_code: Run Python code in a version that this package does not know.
        endpoint: URL of a router (``http://.../v1``) whose latency counts, and that answers where the policy asks for
            serving.
        canary: Percentages such as ``"5,25,50"``: after a passing verdict, serve a growing share of requests first.
        step: Shortest duration of a canary step, for example ``"10m"``.
        least_answers: Fewest canary answers per step.
        failures_at_most: Share of the canary's answers that may fail (None: 0.05).
        dry_run: Judge only; move nothing, and write no report. The tests are counted, because their outcome was seen.
        on_progress: Receives a line before each step that takes time.

    Raises:
        ConfigError, GateError, LeaseError, MoveError, ReloadError, TrackingError: Nothing was moved.
    """
    from mlflow_finetune_plugin.promotion.config import canary_policy
    from mlflow_finetune_plugin.promotion.request import PromotionOptions
    from mlflow_finetune_plugin.promotion.request import promote as judge_and_move

    options = PromotionOptions(
        version=str(version) if version is not None else None,
        alias=alias,
        policy=Path(policy) if policy is not None else None,
        accept_new_policy=accept_new_policy,
        base_model=base_model,
        trust_code=trust_code,
        endpoint=endpoint,
        dry_run=dry_run,
        canary=canary_policy(
            canary,
            step,
            str(least_answers) if least_answers is not None else None,
            str(failures_at_most) if failures_at_most is not None else None,
        ),
    )
    return judge_and_move(model, options, say=on_progress)


def rollback(model: str, reason: str | None = None) -> RollbackResult:
    """Make the previous version champion again. A second rollback undoes the first.

    During a canary the canary is ended, and nothing else is moved.

    Args:
        model: The registered model.
        reason: The reason to record.

    Raises:
        ConfigError, LeaseError, MoveError, TrackingError: Nothing was moved.
    """
    from mlflow_finetune_plugin.promotion.undo import rollback as roll_back

    return roll_back(model, reason)


def history(model: str) -> MoveHistory:
    """Read who moved which alias, when, and on what evidence. A move that was cut off is finished first.

    Args:
        model: The registered model.

    Raises:
        ConfigError, MoveError: There is no such model.
        TrackingError: The registry does not answer.
    """
    from mlflow_finetune_plugin.promotion.move_history import history as read_history

    return read_history(model)


def check_champion(
    model: str,
    data: str | os.PathLike[str] | None = None,
    *,
    act: bool = False,
    policy: str | os.PathLike[str] | None = None,
    base_model: str | None = None,
    trust_code: bool = False,
    on_progress: Callable[[str], None] = lambda line: None,
) -> CheckResult:
    """Check once whether the champion is still the best version. The same as ``mlflow-finetune watch``.

    Args:
        model: The registered model.
        data: File of new rows with answers, in the layout and columns of the training.
        act: Roll back when that is the verdict.
        policy: Folder of a project whose ``register.watch`` applies, and whose ``data.layout`` and ``data.columns``, if
            it has them, say how ``data`` is read.
        base_model: Folder of the base model, when it has moved.
        trust_code: Run Python code in a version that this package does not know.
        on_progress: Receives a line before each step that takes time.

    Raises:
        ConfigError, DataError, LeaseError, MoveError, TrackingError: Nothing was moved.
    """
    from mlflow_finetune_plugin.watch.request import WatchOptions
    from mlflow_finetune_plugin.watch.request import check_champion as check

    options = WatchOptions(
        data=os.fspath(data) if data is not None else None,
        act=act,
        project=os.fspath(policy) if policy is not None else None,
        base_model=base_model,
        trust_code=trust_code,
    )
    return check(model, options, say=on_progress)
