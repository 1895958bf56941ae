"""Render a training on votes as HTML. Every text is escaped."""

from __future__ import annotations

from html import escape

from gradio_app.html_parts import link, note_html, soft
from gradio_app.versions.mlflow_pages import run_page
from gradio_app.versions.vote_training import TrainingState

_ENDS = {
    "finished": ("mf-good", "The training has finished."),
    "failed": ("mf-bad", "The training has failed."),
    "killed": ("", "The training was stopped."),
}


def training_html(model: str, state: TrainingState | None, tracking_uri: str) -> str:
    """Return where a training on votes stands, or how it ended; empty without one."""
    if state is None:
        return ""
    if state.phase == "starting":
        return _card(note_html("The training is checked and begins. This takes some seconds."))
    run = _run(state, tracking_uri)
    if not state.is_running:
        kind, head = _ENDS[state.phase]
        return _card(note_html(f"{head} {state.reason}", kind), run, _comparison(model, state))
    lines = escape("\n".join(state.lines)) or "reading the votes"
    return _card(
        f"<p>{escape(progress_text(state))}</p>",
        run,
        f'<pre class="mf-lines">{lines}</pre>',
        soft("You can leave this page; the training continues."),
    )


def progress_text(state: TrainingState) -> str:
    """Return objective, stage, step and figures of a running training in one line."""
    if not state.total:
        return f"{state.objective} is being prepared."
    figures = "".join(f", {name} {value:.4g}" for name, value in state.figures if name != "seconds_left")
    left = dict(state.figures).get("seconds_left")
    remaining = "" if left is None else f", {left:.0f} s left"
    return f"{state.objective}, {state.stage}: {state.done:,} of {state.total:,} {state.unit}{figures}{remaining}"


def _comparison(model: str, state: TrainingState) -> str:
    if state.phase != "finished" or state.version is None:
        return ""
    return (
        f"<p>Version {escape(state.version)} can be compared: on the Compare tab, under Settings, press "
        f"<em>Choose the models</em> and take <code>{escape(model)}/{escape(state.version)}</code> as a side.</p>"
    )


def _run(state: TrainingState, tracking_uri: str) -> str:
    if not state.run_id:
        return ""
    url = run_page(tracking_uri, state.experiment_id, state.run_id)
    name = f"run {state.run_id}"
    return f"<p>{link(url, name) if url else f'<code>{escape(name)}</code>'}</p>"


def _card(*parts: str) -> str:
    return f'<section class="mf-card" role="status" aria-label="Training on votes">{"".join(parts)}</section>'
