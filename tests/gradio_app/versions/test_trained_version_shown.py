"""A version that a real run trained, as the playground shows it: every figure of its card is there."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY

from gradio_app.versions.cards import read_card
from gradio_app.versions.data_html import read_training_data
from gradio_app.versions.html import card_html

QUICKSTART = REPOSITORY / "recipes" / "quickstart"


@pytest.mark.process
def test_the_card_and_the_data_of_a_trained_version_are_whole(workplace):
    more = ["-P", "max_steps=20", "-P", "eval_steps=10", "-P", "eval.max_rows=20"]
    trained = workplace.finetune_run(str(QUICKSTART), "-e", "lora", *more)
    assert trained.returncode == 0, trained.stdout
    client = workplace.client()
    name = client.search_registered_models()[0].name
    card = read_card(client, name, "1")
    version = card.version
    assert (version.aliases, version.adaptation, version.objective) == (("challenger",), "lora", "sft")
    assert version.run is not None
    assert (version.run.status, version.converted_from) == ("FINISHED", None)
    assert version.gains
    assert version.forgetting is not None
    assert all(gain.gain.low <= gain.gain.value <= gain.gain.high for gain in version.gains)
    curves = {curve.name: curve for curve in card.curves}
    assert [step for step, _ in curves["eval"].points] == [10, 20]
    assert curves["train"].points[-1][0] == 20
    data = read_training_data(client, name, "1")
    assert (version.run.train_rows, version.run.eval_rows) == (data.report.train_rows, data.report.eval_rows)
    assert version.data_digest == data.report.digest
    assert data.to_html().count("<mark>") > 1
    page = card_html(card)
    assert "not known" not in page
    assert "not measured" not in page
