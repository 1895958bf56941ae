"""HTML in Markdown, shown as written."""

import pytest

from gradio_app.html_parts import tags_as_text


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("<b>bold</b> and 1 < 2", "&lt;b>bold&lt;/b> and 1 < 2"),
        ("**bold** `<b>` and <i>", "**bold** `<b>` and &lt;i>"),
        ("``a ` <b> ``<i>", "``a ` <b> ``&lt;i>"),
        ("```html\n<p>\n```\n<p>", "```html\n<p>\n```\n&lt;p>"),
        ("~~~\n<p>\n```\n<p>\n~~~\n<p>", "~~~\n<p>\n```\n<p>\n~~~\n&lt;p>"),
        ("```\n<p>", "```\n<p>"),
        ("a `<b> that never ends", "a `&lt;b> that never ends"),
        ("<!-- note --><?xml?>", "&lt;!-- note -->&lt;?xml?>"),
        ("", ""),
    ],
)
def test_tags_are_text_and_code_stays_code(said, shown):
    assert tags_as_text(said) == shown
