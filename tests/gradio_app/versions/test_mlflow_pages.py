"""Links into MLflow's own pages: only where there is a server, never with its password."""

import pytest

from gradio_app.versions.mlflow_pages import run_page, version_page


def test_a_server_has_pages_for_runs_and_versions():
    assert run_page("http://mlflow:5000", "7", "abc") == "http://mlflow:5000/#/experiments/7/runs/abc"
    assert (
        version_page("https://host/mlflow/", "my bot/é", "3")
        == "https://host/mlflow/#/models/my%20bot%2F%C3%A9/versions/3"
    )


def test_the_user_and_password_of_the_tracking_uri_stay_on_the_server():
    assert run_page("http://alice:secret@mlflow:5000/", "0", "r") == "http://mlflow:5000/#/experiments/0/runs/r"


@pytest.mark.parametrize(
    "uri", ["sqlite:////tmp/mlflow.db", "/tmp/mlruns", "file:///tmp/mlruns", "databricks", "javascript://x"]
)
def test_a_store_without_a_server_has_no_pages(uri):
    assert run_page(uri, "0", "r") is None
    assert version_page(uri, "bot", "1") is None
