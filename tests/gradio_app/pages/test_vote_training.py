"""Train on these votes, as a browser or any other client presses it: a real server, a real store, real job folders."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager

import gradio as gr
import pytest
from conftest import free_port
from page_visits import Visitor
from votes_cast import vote

from gradio_app.pages.vote_training import VoteTrainingPage
from gradio_app.versions.vote_training import PlannedTraining, VoteTrainings, plan_training
from mlflow_finetune_plugin.errors import DataError, MoveError
from mlflow_finetune_plugin.jobs.folder import JobFolder, ProcessId
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.votes import Journal, Mirror

pytestmark = pytest.mark.store

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


class Rights:
    def __init__(self) -> None:
        self.may = True

    def __call__(self, request: gr.Request) -> bool:
        assert isinstance(request, gr.Request)
        return self.may


class NoSubmissions(VoteTrainings):
    """Notes what would be started."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[PlannedTraining] = []

    def begin(self, plan: PlannedTraining, person: str) -> None:
        self.begun.append(plan)


@pytest.fixture
def trainings():
    return NoSubmissions()


@pytest.fixture
def rights():
    return Rights()


@pytest.fixture
def page(store, rights, trainings):
    with served(rights, trainings) as url:
        yield Visitor(url)


@contextmanager
def served(rights, trainings):
    with gr.Blocks() as blocks:
        with gr.Tab("Compare"):
            gr.Markdown("two sides")
        with gr.Tab("Standings") as tab:
            VoteTrainingPage("bot", rights, trainings=trainings).build(tab)
    blocks.queue().launch(server_port=free_port(), prevent_thread_lock=True, quiet=True)
    try:
        yield blocks.local_url
    finally:
        blocks.close()


def cast(*votes):
    journal = Journal("bot")
    for each in votes:
        journal.cast(each)
    Mirror(journal).flush()


def running_job(**outcome: object) -> JobFolder:
    """A job on the votes of bot as the submission leaves it, supervised by this process."""
    folder = JobFolder.create()
    data = {"train": [{"path": "votes:bot"}]}
    folder.write("config", {"objective": "dpo", "data": data, "register": {"name": "bot"}})
    folder.write("state", {"supervisor": ProcessId.of(os.getpid()).to_json()})
    folder.write("run", {"run_id": "r1", "experiment_id": "7"})
    report = Report(folder.report)
    report.stage("data", "3 rows")
    report.progress(12, 40, "steps", stage="train", loss=0.61, seconds_left=30)
    if outcome:
        folder.write("outcome", outcome)
    return folder


def test_the_confirmation_says_what_will_happen_and_nothing_starts_before_it(page, trainings):
    cast(vote(1, "left"), vote(2, "right"), vote(3, "both_bad"), vote(4, "tie"))
    page.select_tab("Standings")
    page.press("Yes, start the training")
    assert "No training was planned; fix: press Train on these votes" in page.text()
    page.press("Train on these votes")
    assert "dpo learns from 2 pairs of a better and a worse answer. It starts from version 1" in page.text()
    assert "left out 2: tie or both bad" in page.text()
    assert "uses defaults, because the playground has no --project" in page.text()
    assert trainings.begun == []
    page.press("Yes, start the training")
    (plan,) = trainings.begun
    assert plan.command[2:4] == ["-e", "dpo"]
    assert plan.parameters == {
        "data": "votes:bot",
        "data.eval": "0.1",
        "register": "bot",
        "start_from": "models:/bot/1",
    }


def test_votes_that_give_nothing_are_told_instead(page, trainings):
    page.select_tab("Standings")
    page.press("Train on these votes")
    assert "votes:bot: people have cast no votes with receipts" in page.text()
    page.press("Yes, start the training")
    assert trainings.begun == []


def test_who_has_no_right_starts_and_stops_nothing_whatever_is_sent(page, rights, trainings):
    cast(vote(1, "left"), vote(2, "right"))
    page.select_tab("Standings")
    page.press("Train on these votes")
    assert "dpo learns from 2 pairs" in page.text()
    rights.may = False  # an auth file that changed after the plan was made
    job = running_job()
    for button in ("Yes, start the training", "Stop this training", "Train on these votes"):
        page.press(button)
        assert "You cannot start or stop a training: your user has no may_promote" in page.text(), button
    assert trainings.begun == []
    assert job.cancel_requested_by() is None


def test_a_running_training_is_shown_to_who_opens_the_page_and_can_be_stopped(page, rights):
    job = running_job()
    page.select_tab("Standings")
    assert "dpo, train: 12 of 40 steps, loss 0.61, 30 s left" in page.text()
    assert "run r1" in page.text()
    page.press("Stop this training")
    assert job.cancel_requested_by() == "the playground"
    job.write("outcome", {"status": "KILLED", "reason": "cancelled by the playground", "recorded": True})
    page.select_tab("Standings")
    assert "The training was stopped. cancelled by the playground" in page.text()
    page.press("Stop this training")
    assert "no training on its votes runs that could be stopped" in page.text()


def test_a_finished_training_names_the_version_to_compare(page):
    result = {"model_uri": "models:/bot/3", "summary": "accuracy <b>0.9</b>"}
    running_job(status="FINISHED", reason="", recorded=True, result=result)
    page.select_tab("Standings")
    assert "The training has finished. accuracy &lt;b&gt;0.9&lt;/b&gt;" in page.page()
    assert "<code>bot/3</code>" in page.page()


def test_no_second_training_starts_while_one_runs(store):
    cast(vote(1, "left"), vote(2, "right"))
    import mlflow

    plan = plan_training(mlflow.MlflowClient(), "bot", "dpo", "champion", None)
    running_job()
    with pytest.raises(MoveError, match=r"bot: a training on its votes runs already \(run r1\); fix: wait"):
        VoteTrainings().begin(plan, "alice")
    assert len(JobFolder.all()) == 1


def test_jobs_of_other_models_and_data_are_not_shown(store):
    other = running_job()
    other.write("config", {"data": {"train": [{"path": "rows.jsonl"}]}, "register": {"name": "bot"}})
    assert VoteTrainings().state("bot") is None
    other.write("config", {"data": {"train": [{"path": "votes:bot"}]}, "register": {"name": "bot 2"}})
    assert VoteTrainings().state("bot") is None


@pytest.mark.bad_input
def test_plans_that_cannot_be_are_refused(store):
    import mlflow

    client = mlflow.MlflowClient()
    with pytest.raises(MoveError, match="'rm -rf' from 'champion': not a choice"):
        plan_training(client, "bot", "rm -rf", "champion", None)
    with pytest.raises(MoveError, match="no registered model 'nobody'"):
        plan_training(client, "nobody", "dpo", "champion", None)
    with pytest.raises(MoveError, match="the run of version 1 does not say what its base is"):
        plan_training(client, "bot", "dpo", "base", None)
    cast(vote(1, "both_bad"))
    with pytest.raises(DataError, match="1 votes, and no vote prefers one of two answers"):
        plan_training(client, "bot", "dpo", "champion", None)
    assert json.dumps(sorted(os.listdir(os.environ["MLFLOW_FINETUNE_HOME"]))) == '["votes"]'
