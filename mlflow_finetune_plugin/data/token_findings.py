"""What is odd about the tokens that are to be learnt: those that the base itself never learnt."""

from __future__ import annotations

import numpy as np

from mlflow_finetune_plugin.data.rendering import ChatRenderer
from mlflow_finetune_plugin.data.report import Finding
from mlflow_finetune_plugin.data.token_file import TokenFile
from mlflow_finetune_plugin.data.trained_tokens import untrained_tokens

UNTRAINED_STOP = "untrained end-of-turn token"
UNTRAINED_ANSWERS = "untrained answer tokens"

_SHOWN = 10
_NOTED_SHARE = 0.001
"""Of the answers' tokens; up to it is no warning, since every large vocabulary has tokens that hardly occur."""


def token_findings(renderer: ChatRenderer, train: TokenFile) -> list[Finding]:
    """An end of turn, and tokens in answers, that the base has hardly seen."""
    return [*_stop_findings(renderer, train.examples), *_answer_findings(renderer, train.learnt_tokens())]


def _stop_findings(renderer: ChatRenderer, examples: int) -> list[Finding]:
    reason = renderer.unlearnt_end_of_turn
    if reason is None:
        return []
    token = str(renderer.tokenizer.convert_ids_to_tokens(renderer.end_of_turn_token_id))
    said = f"train examples end with {token}, which the base has hardly seen: {reason}; the adapter may never stop"
    fix = "choose a base, or a chat template, that ends turns with a token it was trained on"
    return [Finding(UNTRAINED_STOP, examples, said, (), token, fix)]


def _answer_findings(renderer: ChatRenderer, counts: np.ndarray) -> list[Finding]:
    """``counts``: how often each token id carries loss."""
    if renderer.weights is None:
        return []
    unseen = untrained_tokens(renderer.weights, np.flatnonzero(counts))
    unseen = unseen[~np.isin(unseen, renderer.stop_token_ids)]
    if not len(unseen):
        return []
    most = unseen[np.argsort(-counts[unseen], kind="stable")][:_SHOWN]
    shown = " ".join(renderer.tokenizer.convert_ids_to_tokens(most.tolist()))
    count, total = int(counts[unseen].sum()), int(counts.sum())
    said = f"of {total:,} learnt tokens are of {len(unseen):,} kinds that the base has hardly seen ({shown})"
    fix = "write answers with what the base knows, or choose another base: adapters do not move these tokens apart"
    return [Finding(UNTRAINED_ANSWERS, count, said, (), shown, fix, is_warning=count > _NOTED_SHARE * total)]
