"""Loss curves as pictures: what is drawn is what was logged."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from gradio_app.versions.cards import Curve
from gradio_app.versions.loss_chart import Series, described, loss_chart, thinned

TRAIN = Series("train", "a", Curve("train", ((0, 4.0), (50, 2.0), (100, 0.0))))
EVAL = Series("eval <b>", "b", Curve("eval", ((50, 2.5), (100, 1.0)), left_out=2))


def points(page: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'<polyline[^>]* points="([^"]*)"', page)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in lines]


def test_points_stand_where_their_step_and_loss_are():
    (train, held_out) = points(loss_chart([TRAIN, EVAL]))
    assert train == [(48.0, 14.0), (258.0, 117.0), (468.0, 220.0)]
    assert held_out == [(258.0, 91.2), (468.0, 168.5)]


def test_the_picture_is_well_formed_says_itself_in_words_and_holds_no_markup_of_others():
    page = loss_chart([TRAIN, EVAL])
    ElementTree.fromstring(f"<div>{page}</div>")
    assert (
        'role="img" aria-label="Loss by step. train: 4 at step 0, 0 at step 100; eval &lt;b&gt;: 2.5 at step 50' in page
    )
    assert "<b>" not in page
    assert "2 values are not drawn" in page
    assert described([TRAIN]).startswith("Loss by step.")


def test_one_point_or_one_height_is_drawn_too():
    for curve in (
        Curve("train", ((5, 2.0),)),
        Curve("eval", ((1, 0.0), (2, 0.0))),
        Curve("train", ((1, -1.0), (2, -1.0))),
    ):
        page = loss_chart([Series("loss", "a", curve)])
        assert "nan" not in page
        assert len(points(page)[0]) == len(curve.points)
    assert "<circle" in loss_chart([Series("loss", "a", Curve("train", ((5, 2.0),)))])
    assert "No loss was logged" in loss_chart([])


def test_long_curves_keep_their_spikes():
    curve = [(step, 1.0) for step in range(100_000)]
    curve[54_321], curve[77_777] = (54_321, 9.0), (77_777, 0.1)
    kept = thinned(curve)
    assert len(kept) <= 400
    assert {(54_321, 9.0), (77_777, 0.1)} <= set(kept)
    assert kept == sorted(kept)
