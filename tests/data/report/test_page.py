import json
import re

import pytest
from page_words import Page

from mlflow_finetune_plugin.data import DataFile, DataRequest, prepare
from mlflow_finetune_plugin.data.report.contents import DataReport
from mlflow_finetune_plugin.data.report.page import report_fragment, report_page
from mlflow_finetune_plugin.data.report.text import report_text
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer

EVIL = '<script>alert(1)</script> & "quoted"'


@pytest.fixture
def report(tmp_path, byte_tokenizer):
    rows = [{"text": f"{EVIL} number {i}", "label": f"<b>{i % 3}</b>"} for i in range(30)]
    rows += [{"text": EVIL, "label": None}, rows[0]]
    path = tmp_path / "<img src=x>.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    request = DataRequest((DataFile(path, "<i>task"),), 0.2, "auto", {}, "error", 512, None, 0)
    return prepare(request, ChatRenderer(byte_tokenizer), tmp_path / "out").report


def test_text_of_the_data_is_shown_as_text(report):
    page = Page(report_page(report, "<title>"))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "b", "i", "link", "iframe"}
    text = "".join(page.words)
    assert EVIL in text
    assert "<img src=x>.jsonl" in text
    assert "<b>0</b>" in text


def test_page_needs_nothing_from_elsewhere(report):
    text = report_page(report)
    assert not re.search(
        r"https?://|url\(|@import|src=\"|href=\"", re.sub(r"<(pre|code|td)[^>]*>.*?</\1>", "", text, flags=re.S)
    )
    assert "prefers-color-scheme: dark" in text


def test_a_fragment_is_the_page_without_its_head_and_heading(report):
    fragment = report_fragment(report)
    assert fragment.startswith('<article class="mf-data">')
    assert not {tag for tag, _ in Page(fragment).tags} & {"html", "head", "style", "body", "h1"}
    inside = fragment.removeprefix('<article class="mf-data">').strip()
    assert inside in report_page(report).replace("<h1>Data report</h1>", "")


def test_a_report_is_read_back_as_it_was_written(report):
    assert DataReport.from_json(json.dumps(report.to_json())) == report


def test_tokens_that_carry_loss_are_marked(report):
    page = Page(report_page(report))
    sample = report.mask_samples[0]
    learnt = [part["text"] for part in sample if part["carries_loss"]]
    assert learnt[0] in page.marked
    assert not any("alert" in marked for marked in page.marked)


def test_pictures_draw_what_is_counted(report):
    page = Page(report_page(report))
    columns = [a for tag, a in page.tags if tag == "rect" and a["class"] == "train" and "x" in a]
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 3
    assert len(columns) == len(report.train.length_histogram) + 3
    for heading in (
        "Files",
        "Lengths",
        "Labels",
        "Checks",
        "Rows left out",
        "Sample training examples",
        "Split, template and digests",
    ):
        assert heading in page.words


def test_terminal_report_says_the_same(report):
    text = report_text(report)
    assert "1 null field (label), line 31" in text
    assert "train  <img src=x>.jsonl: label: text -> label; 32 rows, 31 kept" in text
    assert "1 training row repeats an earlier row word for word (<img src=x>.jsonl line 32)" in text
    assert report.digest in text
