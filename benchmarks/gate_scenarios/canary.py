"""Failed answers of a canary: users who stay on one side, and canaries that widen."""

from __future__ import annotations

import importlib.util

import numpy as np

from gate_scenarios.scenario import Rng, Trial, error, outside, power
from mlflow_finetune_plugin.gate.canary import CanaryLook, judge_canary
from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest

COUNTS_USERS = importlib.util.find_spec("mlflow_finetune_plugin.serving.router.first_answers") is not None
"""The first preview compares all answers."""
POLICY = CanaryPolicy((5, 25, 50))
ALPHA, CHECK_S, REQUESTS = POLICY.alpha, 300.0, 500
NONE = Answered(0, 0)


def widens(canary: float, champion: float) -> Trial:
    """A canary of the default steps, with 500 requests per check, one each five minutes; whether it passes all steps."""

    def trial(rng: Rng) -> bool:
        test, totals = FailureTest(), [NONE, NONE]
        for step, share in enumerate(POLICY.steps):
            action, in_step_s, before = "wait", 0.0, totals[0]
            while action == "wait":
                size = int(rng.binomial(REQUESTS, share / 100))
                batch = [answered(rng, size, canary), answered(rng, REQUESTS - size, champion)]
                test, totals = test.after(*batch), [total + part for total, part in zip(totals, batch, strict=True)]
                in_step_s += CHECK_S
                answers = totals[0].answers - before.answers
                action = judge_canary(POLICY, CanaryLook(step, in_step_s, answers, *totals, test)).action
            if action != "widen":
                return False
        return True

    return trial


def answered(rng: Rng, answers: int, rate: float) -> Answered:
    return Answered(answers, int(rng.binomial(answers, rate)))


def back_by_users(share: float, failing_users: float, *, canary_fails: float = 0.005, checks: int = 10) -> Trial:
    """200 users, each on one side of the split; whether the canary goes back in 10 checks of 300 requests.

    The prompts of ``failing_users`` fail with either version. Other answers fail in 0.5 % of the cases, or the canary's in ``canary_fails``.
    """

    def trial(rng: Rng) -> bool:
        is_canary, fails = rng.random(200) < share, rng.random(200) < failing_users
        often = rng.dirichlet(np.ones(200))
        count = UserCount()
        test, totals, firsts, waiting = FailureTest(), [NONE, NONE], [NONE, NONE], [NONE, NONE]
        for check in range(1, checks + 1):
            for user in rng.choice(200, size=300, p=often):
                side = 0 if is_canary[user] else 1
                failed = bool(fails[user] or rng.random() < (canary_fails if side == 0 else 0.005))
                answer = Answered(1, int(failed))
                totals[side] += answer
                if count.is_counted(int(user)):
                    firsts[side] += answer
                    waiting[side] += answer
            if all(part.answers for part in waiting):
                test, waiting = test.after(*waiting), [NONE, NONE]
            first = {"first_answers": tuple(firsts)} if COUNTS_USERS else {}
            look = CanaryLook(0, check * CHECK_S, totals[0].answers, *totals, test, **first)
            if judge_canary(CanaryPolicy((100 * share,), step_s=3600), look).action == "back":
                return True
        return False

    return trial


class UserCount:
    """Which answers the router counts for the comparison."""

    def __init__(self) -> None:
        self._first = None
        if COUNTS_USERS:
            from mlflow_finetune_plugin.serving.router.first_answers import FirstAnswers

            self._first = FirstAnswers()

    def is_counted(self, user: int) -> bool:
        if self._first is None:
            return True
        from mlflow_finetune_plugin.serving.router.first_answers import Draw

        return self._first.is_counted("bot", Draw(str(user), True))


SCENARIOS = [
    *[
        error(
            f"canary: 2 % of the users fail with either version, split {100 * share:g} %",
            back_by_users(share, 0.02),
            ALPHA,
            audit,
            share=0.5,
        )
        for share, audit in ((0.05, "10 to 12"), (0.25, "18 to 24"), (0.5, "19 to 40"))
    ],
    *[
        error(
            f"canary: 4.5 % of the users fail with either version, split {100 * share:g} %",
            back_by_users(share, 0.045),
            ALPHA,
            share=0.5,
        )
        for share in (0.05, 0.25)
    ],
    error("canary: independent failures, split 25 %", back_by_users(0.25, 0.0), ALPHA, "1.8", share=0.5),
    *[
        error(f"canary: {100 * rate:g} % fail, 5 % allowed, passes all steps", widens(rate, 0.01), ALPHA)
        for rate in (0.05, 0.06)
    ],
    *[
        outside(
            f"canary: {100 * rate:g} % fail, of the champion's 1 %, 5 % allowed, passes all steps",
            widens(rate, 0.01),
            audit,
        )
        for rate, audit in ((0.02, "84"), (0.03, "35"))
    ],
    power("canary: 1 % fail, as of the champion's, passes all steps", widens(0.01, 0.01)),
    *[
        power(
            f"canary: {100 * fails:g} % fail, of the champion's 0.5 %, {users} users at a split of {100 * share:g} %, goes back",
            back_by_users(share, 0.0, canary_fails=fails),
            share=0.5,
        )
        for fails, users, share in ((0.2, 10, 0.05), (0.5, 10, 0.05), (0.2, 50, 0.25))
    ],
]
