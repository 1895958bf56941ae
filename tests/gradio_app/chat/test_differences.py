"""Word by word, and never as HTML."""

from gradio_app.chat.html import differences


def test_words_of_one_side_alone_are_marked():
    assert differences("a red card", "a blue card") == ("a <mark>red</mark> card", "a <mark>blue</mark> card")


def test_equal_answers_have_no_marks():
    assert differences("same", "same") == ("same", "same")


def test_answers_are_escaped():
    left, right = differences("<script>x</script>", "<b>")
    assert "<script>" not in left
    assert "<b>" not in right
    assert "&lt;" in right


def test_what_is_beyond_the_longest_comparison_is_still_shown():
    left, _ = differences("a" * 50_000 + "<", "b")
    assert left.endswith("a&lt;")
    assert left.replace("<mark>", "").replace("</mark>", "").count("a") == 50_000
