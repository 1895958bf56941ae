"""Pictures are well-formed, say in words what they show, and put things where they belong."""

import math
from xml.etree import ElementTree

import pytest

from gradio_app.standings.charts import ForestRow, PathLabels, Scale, forest_plot, path_plot
from mlflow_finetune_plugin.evaluation.results import Interval

HOSTILE = '<script>alert(1)</script>"&'
LABELS = PathLabels("version 2", "version 1", "decisive votes")


def drawn(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html)  # our own


def named(root: ElementTree.Element, name: str) -> list[dict[str, str]]:
    return [element.attrib for element in root.iter() if element.attrib.get("class") == name]


def test_a_bar_is_at_its_share_of_the_width():
    """The scale leaves 2 % of the width at each end."""
    root = drawn(forest_plot([ForestRow("people", Interval(0.75, 0.5, 1.0, ""), "75% of 4")], caption="win rate"))
    (bar,), (dot,), (middle,) = (named(root, name) for name in ("mf-bar", "mf-dot", "mf-middle"))
    assert (bar["x1"], bar["x2"], dot["cx"], middle["x1"]) == ("50.0%", "98.0%", "74.0%", "50.0%")


@pytest.mark.parametrize(
    ("low", "high", "side"), [(0.51, 0.8, "mf-ahead"), (0.2, 0.49, "mf-behind"), (0.4, 0.6, "mf-even")]
)
def test_a_bar_beside_the_middle_is_told_apart(low, high, side):
    root = drawn(forest_plot([ForestRow("people", Interval((low + high) / 2, low, high, ""), "")], caption=""))
    assert len(named(root, side)) == 1


def test_an_open_interval_reaches_the_edge_and_no_interval_is_words():
    scale = Scale(-2.0, 0.0, 2.0, ("-2", "average", "+2"))
    rows = [
        ForestRow("version 3", Interval(1.0, 0.5, math.inf, ""), "+1.00"),
        ForestRow("version 4", None, "no vote prefers one"),
    ]
    root = drawn(forest_plot(rows, caption="", scale=scale))
    (bar,) = named(root, "mf-bar")
    assert (bar["x1"], bar["x2"]) == ("62.0%", "98.0%")
    assert [svg.attrib["aria-label"] for svg in root.iter("svg")] == ["version 3: +1.00", "no vote prefers one"]


def test_every_row_has_its_header_and_every_group_one_of_its_own():
    rows = [ForestRow("people", None, "-"), ForestRow("greetings", None, "-", "By prompt set")]
    headers = [(th.attrib["scope"], th.text) for th in drawn(forest_plot(rows, caption="")).iter("th")]
    assert headers == [("row", "people"), ("colgroup", "By prompt set"), ("row", "greetings")]


def test_a_path_on_a_logarithmic_scale():
    """From 0.1 to 100: a decade is 60 pixels high; 1 lies at 10 + 120, the boundary of 10 at 10 + 60."""
    html = path_plot([1, 1.5, 10.0], [1, 0.5, 0.1], boundary=10.0, minimum=1, labels=LABELS)
    root = drawn(html)
    (line_a,), (line_b,), (boundary,) = (named(root, name) for name in ("mf-line-a", "mf-line-b", "mf-boundary"))
    first, _, last = line_a["points"].split()
    assert (first, last) == ("0.0,130.0", "1000.0,70.0")
    assert line_b["points"].split()[-1] == "1000.0,190.0"
    assert boundary["y1"] == boundary["y2"] == "70.0"
    assert not named(root, "mf-least")
    (said,) = (svg.attrib["aria-label"] for svg in root.iter("svg") if svg.attrib.get("role") == "img")
    assert said == (
        "Evidence after 2 decisive votes: 10 that version 2 is preferred, 0.1 that version 1 is; 10 decides."
    )


def test_a_minimum_beyond_the_path_stays_in_the_picture():
    root = drawn(path_plot([1, 1.5], [1, 0.5], boundary=20.0, minimum=10, labels=LABELS))
    (least,) = named(root, "mf-least")
    assert least["x1"] == "98.0%"
    assert named(root, "mf-line-a")[0]["points"].split()[-1].startswith("100.0,")


@pytest.mark.parametrize("evidence", [[1.0], [1.0, 1e-12], [1.0, 1e250], [1.0] * 10_001])
def test_extreme_paths_are_drawn(evidence):
    html = path_plot(evidence, evidence, boundary=20.0, minimum=1, labels=LABELS)
    assert "nan" not in html
    assert "inf" not in html
    assert len(html) < 30_000
    drawn(html)


def test_texts_from_elsewhere_are_escaped():
    rows = [ForestRow(HOSTILE, None, HOSTILE, HOSTILE)]
    labels = PathLabels(HOSTILE, HOSTILE, HOSTILE)
    for html in (
        forest_plot(rows, caption=HOSTILE),
        path_plot([1, 2.0], [1, 0.5], boundary=20.0, minimum=3, labels=labels),
    ):
        assert "<script" not in html
        assert HOSTILE in "".join(drawn(html).itertext())
