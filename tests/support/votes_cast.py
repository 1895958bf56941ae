"""Votes and versions for tests: receipts as the router gives them, versions that a registry really has."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_finetune_plugin.votes import CastVote, Journal, Mirror, Receipt, Turn, VoteSide
from mlflow_finetune_plugin.votes.journal.lines import Entry
from mlflow_finetune_plugin.votes.mlflow.answer_trace import TracedAnswer
from mlflow_finetune_plugin.votes.mlflow.feedback import feedback_of, mirrored_vote
from mlflow_finetune_plugin.votes.mlflow.reading import CheckedVote, Reading

BASE_DIGEST = "b" * 64
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
NOON_MS = 1_795_262_400_000


def digest(version: str) -> str:
    return f"{version:a>64}"


def receipt(version: str, request_id: str, model: str = "bot") -> Receipt:
    return Receipt(model, version, "" if version == "base" else digest(version), BASE_DIGEST, request_id)


def vote(
    number: int | str,
    choice: str = "left",
    *,
    voter: str = "v-1",
    left: str = "1",
    right: str = "2",
    answers: tuple[str, str] = ("a short answer", "another, longer answer"),
    question: str | None = None,
    prompt_set: str | None = None,
    **more,
) -> CastVote:
    """A vote on turn ``t-NUMBER`` between two versions."""
    prompt = ({"role": "user", "content": question or f"question {number}"},)
    turn = Turn(f"t-{number}", f"s-{voter}", prompt, prompt_set)
    sides = (
        VoteSide(receipt(left, f"req-{number}-l"), answers[0], None, "left"),
        VoteSide(receipt(right, f"req-{number}-r"), answers[1], None, "right"),
    )
    return CastVote(turn, sides, choice, voter, **{"cast_at": NOON, **more})


def spoken(cast: CastVote, **of_the_left) -> tuple[TracedAnswer, TracedAnswer]:
    """Both answers to a vote's turn, as said a minute before noon: the left one in 2.5 s, the right one in 4 s."""
    left, right = cast.sides
    return (
        TracedAnswer(left, NOON_MS - 60_000, NOON_MS - 57_500, **{"model": "bot@champion", **of_the_left}),
        TracedAnswer(right, NOON_MS - 60_000, NOON_MS - 56_000, model="bot@challenger"),
    )


def register_versions(tracking_uri: str, count: int = 2, model: str = "bot") -> None:
    """Versions 1 to ``count`` with the tags that training gives them; the first is champion, the second challenger."""
    client = MlflowClient(tracking_uri, tracking_uri)
    client.create_registered_model(model)
    for number in range(1, count + 1):
        tags = {"finetune.adapter_digest": digest(str(number)), "finetune.base_digest": BASE_DIGEST}
        logged = client.create_logged_model("0", name="adapter")
        client.create_model_version(model, source=f"models:/{logged.model_id}", tags=tags, model_id=logged.model_id)
    client.set_registered_model_alias(model, "champion", "1")
    if count > 1:
        client.set_registered_model_alias(model, "challenger", "2")


@dataclass
class Ledger:
    """A journal and the tracking server that it is mirrored to."""

    journal: Journal
    uri: str

    def cast(self, *votes: CastVote) -> None:
        """Into the journal and on to the server."""
        for one in votes:
            self.journal.cast(one)
        Mirror(self.journal, self.uri).flush()


def ledger_in(folder: Path, empty_store: Path, versions: int = 2) -> Ledger:
    """A ledger on a store of its own, which nothing in this process knows but by its URI."""
    shutil.copy(empty_store, folder / "mlflow.db")
    uri, before = f"sqlite:///{folder / 'mlflow.db'}", mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)  # a store without a server looks up logged models where the process tracks
    register_versions(uri, versions)
    mlflow.set_tracking_uri(before)
    return Ledger(Journal("bot", folder / "votes"), uri)


def ledger_of_this_user(folder: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """Yield a ledger where commands look for one: on the store that this process tracks, and in the user's home."""
    shutil.copy(empty_store, folder / "mlflow.db")
    uri, before = f"sqlite:///{folder / 'mlflow.db'}", mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_FINETUNE_HOME", str(folder / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    register_versions(uri)
    yield Ledger(Journal("bot"), uri)
    mlflow.set_tracking_uri(before)


def read(*votes: CastVote, read_at: datetime | None = None) -> Reading:
    """What MLflow would say of these votes, all of which count. ``read_at`` None: no more votes will come."""
    told = [
        mirrored_vote(feedback_of(Entry(number, number, one), "j-1", [f"tr-{number}-l", f"tr-{number}-r"])[0])
        for number, one in enumerate(votes, start=1)
    ]
    return Reading("bot", tuple(CheckedVote(one, None) for one in told), 0, 0, read_at)


def cast_in_a_loop(folder: str, first: str, count: str, starter: str = "") -> None:
    """Casts votes one after the other and says each one's id once it is acknowledged; waits for ``starter`` to exist."""
    journal = Journal("bot", Path(folder))
    while starter and not Path(starter).exists():
        Path(f"{starter}.ready-{first}").touch()
        time.sleep(0.001)
    for number in range(int(first), int(first) + int(count)):
        print(journal.cast(vote(number, voter=f"v-{number % 7}")).vote.vote_id, flush=True)


if __name__ == "__main__":
    cast_in_a_loop(*sys.argv[1:])
