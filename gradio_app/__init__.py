"""The playground: compare models blind in the browser, vote, and watch the standings. ``python -m gradio_app`` serves it."""
