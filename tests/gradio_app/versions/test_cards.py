"""What is told of versions is what the registry and their runs hold, and what they do not hold is said. Real stores."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from described_versions import register_described
from mlflow.entities import Metric

from gradio_app.versions.cards import Bounds, GainFigure, TrainingRun, list_versions, read_card
from gradio_app.versions.html import card_html, comparison_html, versions_table
from mlflow_finetune_plugin.errors import MoveError

pytestmark = pytest.mark.store

HOSTILE = '<img src=x onerror="alert(1)">'


def test_a_version_tells_what_its_run_and_the_registry_hold(registry):
    passed = "passed (vllm, 1e-06 nats of 0.001 allowed, base 0, gap 0)"
    failed = "failed: the base is another one (transformers, 1 nats of 0.001 allowed, base 2, gap 0)"
    tags = {"certificate.vllm.bfloat16": passed, "certificate.transformers.float32": failed}
    number = register_described(registry, "bot", 100, tags=tags)
    registry.set_model_version_tag("bot", number, "finetune.verdict", "hold for champion, run abc123")
    (version,) = list_versions(registry, "bot").rows
    run_id = registry.get_model_version("bot", number).run_id
    assert (version.number, version.aliases, version.adaptation_and_objective, version.base_model) == (
        number,
        ("challenger",),
        "lora x sft",
        "tiny",
    )
    assert version.gains == (GainFigure("exact_match", 0.1, 0.5, Bounds(0.4, 0.35000000000000003, 0.45)),)
    assert version.forgetting == Bounds(0.03, 0.01, 0.07)
    assert version.run == TrainingRun(run_id, "FINISHED", None, 800, 200)
    assert [(one.engine, one.precision, one.passed) for one in version.certificates] == [
        ("transformers", "float32", False),
        ("vllm", "bfloat16", True),
    ]
    assert (version.verdict.outcome, version.verdict.run_id) == ("hold", "abc123")
    card = read_card(registry, "bot", number)
    assert card.version == version
    assert [(curve.name, curve.points) for curve in card.curves] == [
        ("train", ((1, 3.0), (2, 2.0), (3, 1.0))),
        ("eval", ((3, 1.25),)),
    ]


def test_a_run_and_a_version_link_to_mlflow_where_it_has_a_server(registry):
    number = register_described(registry, "bot", 100)
    card = read_card(registry, "bot", number)
    run_id = card.version.run.run_id
    assert (card.version.page_url, card.version.run.page_url) == (None, None)
    assert f'data-copy="{run_id}">Copy</button>' in card_html(card)
    version = replace(
        card.version,
        page_url="http://mlflow:5000/#/models/bot/versions/1",
        run=replace(card.version.run, page_url=f"http://mlflow:5000/#/experiments/0/runs/{run_id}"),
    )
    html = card_html(replace(card, version=version))
    assert f'href="http://mlflow:5000/#/experiments/0/runs/{run_id}"' in html
    assert 'href="http://mlflow:5000/#/models/bot/versions/1"' in html
    assert "data-copy" not in html


def test_the_newest_come_first_and_only_as_many_as_are_asked_for(registry):
    registry.create_registered_model("bot")
    for _ in range(12):
        registry.create_model_version("bot", "s3://nowhere/adapter")
    versions = list_versions(registry, "bot", limit=5)
    assert [version.number for version in versions.rows] == ["12", "11", "10", "9", "8"]
    assert versions.has_more
    assert not list_versions(registry, "bot", limit=12).has_more
    assert "older versions than these 5: “Show older”" in versions_table(versions, None)


def test_runs_of_several_experiments_are_found_and_those_that_are_gone_are_said(registry):
    numbers = [register_described(registry, "bot", 100) for _ in range(2)]
    elsewhere = registry.create_run(registry.create_experiment("elsewhere")).info.run_id
    registry.log_metric(elsewhere, "eval/gain/f1", 0.5)
    registry.create_model_version("bot", "s3://nowhere/adapter", run_id=elsewhere)
    registry.create_model_version("bot", "s3://nowhere/adapter", run_id="0" * 32)
    registry.create_model_version("bot", "s3://nowhere/adapter")
    registry.delete_run(registry.get_model_version("bot", numbers[0]).run_id)
    gone, purged, other, kept, deleted = list_versions(registry, "bot").rows
    assert (gone.run, purged.run) == (None, None)
    assert other.gains == (GainFigure("f1", None, None, Bounds(0.5, None, None)),)
    assert (kept.run.status, deleted.run.status) == ("FINISHED", "DELETED")
    assert deleted.gains == kept.gains, "a deleted run can be restored, and is still there"
    assert "not known: its run was deleted" in card_html(read_card(registry, "bot", purged.number))


def test_a_version_of_another_package_says_what_is_not_known(registry):
    registry.create_registered_model("bot")
    registry.create_model_version("bot", "s3://nowhere/adapter", run_id=registry.create_run("0").info.run_id)
    page = card_html(read_card(registry, "bot", "1"))
    for said in (
        "not known",
        "not measured",
        "not served yet",
        "not judged yet",
        "No metrics were logged",
        "No loss was logged",
    ):
        assert said in page
    assert "nan" not in page.lower()


def test_what_is_not_finite_is_left_out_and_the_last_word_on_a_step_holds(registry):
    number = register_described(registry, "bot", 100)
    run_id = registry.get_model_version("bot", number).run_id
    values = [(math.nan, 4, 2000), (-math.inf, 5, 2000), (9.0, 2, 500), (1.5, 2, 3000)]
    registry.log_batch(run_id, [Metric("train/loss", value, time, step) for value, step, time in values])
    registry.log_metric(run_id, "eval/gain/loss", math.inf)
    card = read_card(registry, "bot", number)
    assert card.curves[0].points == ((1, 3.0), (2, 1.5), (3, 1.0))
    assert card.curves[0].left_out == 2
    assert [gain.metric for gain in card.version.gains] == ["exact_match"]


def test_gains_are_coloured_only_where_the_interval_is_on_one_side(registry):
    sure, unsure, worse = (register_described(registry, "bot", right) for right in (100, 25, 2))
    pages = {number: card_html(read_card(registry, "bot", number)) for number in (sure, unsure, worse)}
    assert '<span class="mf-is-good">+0.4</span>' in pages[sure]
    assert '<span class="">+0.025</span>' in pages[unsure]
    assert '<span class="mf-is-bad">-0.09</span>' in pages[worse]
    assert 'small, <span class="mf-is-bad">+0.03</span> nats per token' in pages[sure], "forgetting more is worse"


def test_the_version_that_a_training_started_from_is_shown(registry):
    number = register_described(registry, "bot", 100, tags={"start_from": "models:/bot/1"})
    card = read_card(registry, "bot", number)
    assert card.version.start_from == "models:/bot/1"
    assert "started from models:/bot/1" in card_html(card)
    other = read_card(registry, "bot", register_described(registry, "bot", 100))
    assert "started from" not in card_html(other)


def test_two_versions_stand_side_by_side_and_differences_are_bold(registry):
    first = register_described(registry, "bot", 100)
    second = register_described(registry, "bot", 160, tags={"adaptation": "dora", "data_digest": "ef" * 32})
    page = comparison_html(*(read_card(registry, "bot", number) for number in (first, second)))
    assert "<td><b>lora x sft</b></td><td><b>dora x sft</b></td>" in page
    assert "<td>tiny</td><td>tiny</td>" in page
    assert "trained on different data" in page
    assert page.count("<polyline") == 4


def test_texts_of_the_registry_are_shown_as_text(registry):
    tags = dict.fromkeys(
        ("adaptation", "base_model", "data_digest", "converted_from", "start_from", "verdict"), HOSTILE
    )
    number = register_described(registry, "bot", 100, tags={**tags, "certificate.vllm.float32": HOSTILE})
    run_id = registry.get_model_version("bot", number).run_id
    registry.set_tag(run_id, "finetune.status_reason", HOSTILE)
    card = read_card(registry, "bot", number)
    for page in (card_html(card), comparison_html(card, card), versions_table(list_versions(registry, "bot"), None)):
        assert "<img" not in page
        assert "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;" in page


def test_what_is_not_there_is_one_message_with_its_fix(registry):
    with pytest.raises(MoveError, match=r"no registered model .bot.; fix: "):
        list_versions(registry, "bot")
    registry.create_registered_model("bot")
    assert "mlflow-finetune run PROJECT" in versions_table(list_versions(registry, "bot"), None)
    for number in ("1", "0", "../1", "1" * 30):
        with pytest.raises(MoveError, match=r"no version .* fix: pick one from the list"):
            read_card(registry, "bot", number)
