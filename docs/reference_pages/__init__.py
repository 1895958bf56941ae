"""Render the pages of docs/reference from the code. Each module has one ``page()`` that returns a page as Markdown."""
