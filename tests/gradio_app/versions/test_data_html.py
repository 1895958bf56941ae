"""The data report of a version's run is shown whole, as text, and what cannot be shown is said. Real stores."""

from __future__ import annotations

import json
import re

import pytest
from mlflow import MlflowClient
from page_words import Page

from gradio_app.versions.data_html import ARTIFACT, LONGEST_BYTES, REPORT_CSS, read_training_data
from mlflow_finetune_plugin.data.report.contents import DataFinding, DataReport, FileReport, LabelReport, SkipCount
from mlflow_finetune_plugin.data.tokens.token_report import token_report
from mlflow_finetune_plugin.errors import DataError, MoveError

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'


def report() -> DataReport:
    """Of a file that somebody hostile has written: every text of it is markup."""
    skipped = SkipCount(HOSTILE, 1, (7,), HOSTILE, HOSTILE)
    counts = dict.fromkeys(
        [
            "over_length",
            "truncated",
            "truncated_end_of_turn",
            "truncated_answer",
            "duplicates",
            "contradictions",
            "eval_duplicates",
            "leaked_prompts",
            "leaked_rows",
            "unrolled",
            "boundary_splits",
        ],
        0,
    )
    return DataReport(
        files=(FileReport(HOSTILE, HOSTILE, "train", "prompt, completion", 3, 2, (skipped,)),),
        train_rows=1,
        eval_rows=1,
        eval_split=HOSTILE,
        train=token_report({12: 1}, 4),
        eval=token_report({10: 1}, 4),
        max_length=512,
        overlength="error",
        template_source=HOSTILE,
        template_digest="ab" * 32,
        answer_prefix=HOSTILE,
        end_of_turn_token=HOSTILE,
        stop_tokens=(HOSTILE,),
        digest="cd" * 32,
        eval_digest="ef" * 32,
        notes=(HOSTILE,),
        mask_samples=(({"text": "user: ", "carries_loss": False}, {"text": HOSTILE, "carries_loss": True}),),
        findings=(DataFinding("check", 1, HOSTILE, (HOSTILE,), HOSTILE, HOSTILE),),
        labels=LabelReport(((HOSTILE, 1),), ((HOSTILE, 1),)),
        **counts,
    )


def register(client: MlflowClient, text: str | None) -> str:
    """A version of bot whose run left this as its report; its number."""
    if not client.search_registered_models("name = 'bot'"):
        client.create_registered_model("bot")
    run_id = client.create_run("0").info.run_id
    if text is not None:
        client.log_text(run_id, text, ARTIFACT)
    return str(client.create_model_version("bot", "s3://nowhere/adapter", run_id=run_id).version)


def test_the_report_is_what_the_run_wrote(registry):
    number = register(registry, json.dumps(report().to_json()))
    found = read_training_data(registry, "bot", number)
    assert found.report == report()
    assert found.run_id == registry.get_model_version("bot", number).run_id


def test_what_carries_loss_is_marked_and_texts_of_the_data_are_text(registry):
    fragment = read_training_data(registry, "bot", register(registry, json.dumps(report().to_json()))).to_html()
    page = Page(fragment)
    assert page.marked == ["marked", HOSTILE]
    assert not {tag for tag, _ in page.tags} & {"script", "img", "html", "body", "style", "link"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "".join(page.words).count(HOSTILE) >= 12


def test_the_style_stays_within_the_report(registry):
    rules = re.sub(r"\{[^}]*\}", "{}", REPORT_CSS)
    for selectors in re.findall(r"([^{}]+)\{\}", rules):
        assert all(".mf-data" in selector for selector in selectors.split(",")), selectors


def test_what_is_no_report_is_said_with_a_remedy(registry):
    whole = report().to_json()
    cut = {**whole, "mask_samples": [[{"text": "a"}]]}
    for text, said in (
        (None, "holds no finetune/data_report.json: .*; fix: "),
        ("{", "not a valid data report: .*; fix: "),
        ("[]", "not a valid data report"),
        (json.dumps({**whole, "train_rows": "many"}), "not a valid data report"),
        (json.dumps(cut), "samples are incomplete"),
        (json.dumps({**whole, "train": {**whole["train"], "length_quantiles": {}}}), "lengths or samples"),
        (f'"{"a" * LONGEST_BYTES}"', "more than the 4,194,304 that this page displays; fix: "),
    ):
        with pytest.raises(DataError, match=said):
            read_training_data(registry, "bot", register(registry, text))


def test_a_report_of_a_later_package_is_read_as_far_as_it_is_known(registry):
    later = {**report().to_json(), "something_new": {"a": 1}}
    assert read_training_data(registry, "bot", register(registry, json.dumps(later))).report == report()


def test_a_run_that_is_gone_or_was_never_there(registry):
    registry.create_registered_model("bot")
    gone = registry.create_model_version("bot", "s3://nowhere/adapter", run_id="0" * 32).version
    none = registry.create_model_version("bot", "s3://nowhere/adapter").version
    with pytest.raises(DataError, match="was deleted; fix: "):
        read_training_data(registry, "bot", str(gone))
    with pytest.raises(DataError, match="the run that trained it is unknown"):
        read_training_data(registry, "bot", str(none))
    with pytest.raises(MoveError, match="no version '9'"):
        read_training_data(registry, "bot", "9")
