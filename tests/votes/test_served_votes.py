"""From the router's answers to the gate: a real service, its receipts, the ledger, the registry."""

from __future__ import annotations

import shutil

import mlflow
import pytest
from served_models import QUESTIONS, VersionMaker
from serving_process import serving

from mlflow_finetune_plugin.store.registry import find_model
from mlflow_finetune_plugin.votes import CastVote, Journal, Mirror, read_votes
from mlflow_finetune_plugin.votes.judge import answer_pairs
from mlflow_finetune_plugin.votes.mlflow.reading import gate_votes
from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces

PROMPTS = [({"role": "user", "content": question},) for question in QUESTIONS]


@pytest.mark.process
def test_votes_on_served_answers_reach_the_gate(tmp_path, empty_store, monkeypatch):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    before = mlflow.get_tracking_uri()
    monkeypatch.chdir(tmp_path)
    maker = VersionMaker(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        for seed in (1, 2):
            maker.make("bot", seed=seed)
        with serving(tmp_path, maker.uri, "bot", "--engine", "transformers") as service:
            url = f"{service.url}/v1"
            versions = answer_pairs(PROMPTS, url=url, models=("bot/1", "bot@challenger"), max_tokens=8)
            base = answer_pairs(PROMPTS[:1], url=url, models=("bot/2", "base"), max_tokens=8)
        assert versions.faults == base.faults == ()
        journal = Journal("bot", tmp_path / "votes")
        for pair in (*versions.pairs, *base.pairs):
            winner = next(side for side in pair.sides if side.receipt is not None and side.receipt.version == "2")
            journal.cast(CastVote(pair.turn, pair.sides, winner.position, journal.voter("alice")))
        Mirror(journal, maker.uri).flush()
        reading = read_votes("bot", maker.uri)
        assert reading.not_counted == {}
        alice = journal.voter("alice")
        votes = gate_votes(reading, "2", "1")
        assert [(vote.voter, vote.choice) for vote in votes] == [(alice, "candidate")] * len(QUESTIONS)
        assert len({vote.prompt for vote in votes}) == len(QUESTIONS)
        (over_base,) = gate_votes(reading, "2", "base")
        assert (over_base.voter, over_base.choice) == (alice, "candidate")
        model_id = find_model(maker.client, "models:/bot/2").model_id
        assert model_id is not None
        linked = VoteTraces("bot", maker.uri).tracing.search_traces(
            locations=[VoteTraces("bot", maker.uri).experiment()], model_id=model_id
        )
        assert len(linked) == len(QUESTIONS) + 1
    finally:
        mlflow.set_tracking_uri(before)
