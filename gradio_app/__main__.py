"""``python -m gradio_app``: the page over endpoints that answer already; `mlflow-finetune playground` starts it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

from gradio_app.settings import PlaygroundSettings, check_settings
from gradio_app.web.access import Access
from gradio_app.web.server import Page, check_address, make_app, private_files, run
from mlflow_finetune_plugin.config.durations import seconds_of
from mlflow_finetune_plugin.errors import ConfigError, FinetuneError, MissingExtraError

logger = logging.getLogger(__name__)

_DAY_S = 86_400.0

PageMaker = Callable[[PlaygroundSettings, Access], Page]


def main(argv: list[str] | None = None, page: PageMaker | None = None) -> int:
    """Serves until Ctrl-C or SIGTERM. Exit code 2 and one message for a fault of the user's. ``page``: another than ours."""
    namespace = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        settings = settings_of(namespace)
        check_settings(settings)
        if namespace.check:
            Access(settings)
            check_address(settings)
            return 0
        _serve(settings, page, is_opened=namespace.open)
    except FinetuneError as error:
        print(f"mlflow-finetune playground: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m gradio_app", description="Blind A/B chat in the browser.")
    made.add_argument("--endpoint", action="append", default=[], metavar="URL", help="OpenAI-compatible, ends in /v1")
    made.add_argument("--model", metavar="NAME", help="the registered model whose votes are kept")
    made.add_argument("--side", action="append", default=[], metavar="NAME", help="a model that takes part")
    made.add_argument("--host", default="127.0.0.1")
    made.add_argument("--port", type=int, default=7860, help="default: 7860; 0: any that is free")
    made.add_argument("--auth-file", type=Path, metavar="FILE", help="who may come in; see `mlflow-finetune users`")
    made.add_argument("--user-header", metavar="NAME", help="the header in which a proxy says who asks")
    made.add_argument("--trusted-proxy", action="append", default=[], metavar="ADDRESS", help="whose header counts")
    made.add_argument("--promoter", action="append", default=[], metavar="USER", help="of the header's, may promote")
    made.add_argument("--public-host", action="append", default=[], metavar="NAME", help="under which it is reached")
    made.add_argument("--prompts", type=Path, action="append", default=[], metavar="FILE", help="JSONL to walk through")
    made.add_argument("--keep-traces", metavar="DURATION", help="of answers without a vote, e.g. 30d (default: ever)")
    made.add_argument("--max-prompt-chars", type=int, default=PlaygroundSettings.max_prompt_chars)
    made.add_argument("--max-turns", type=int, default=PlaygroundSettings.max_turns)
    made.add_argument("--max-streams-per-session", type=int, default=PlaygroundSettings.max_streams_per_session)
    made.add_argument("--max-streams", type=int, default=PlaygroundSettings.max_streams)
    made.add_argument("--max-waiting", type=int, default=PlaygroundSettings.max_waiting)
    made.add_argument("--max-body-bytes", type=int, default=PlaygroundSettings.max_body_bytes)
    made.add_argument(
        "--mcp",
        action="store_true",
        help="answer the Model Context Protocol too; all its programs share one conversation",
    )
    made.add_argument("--check", action="store_true", help="look for faults in the arguments, serve nothing")
    made.add_argument("--open", action="store_true", help="open it in the browser, where there is a display")
    return made


def settings_of(namespace: argparse.Namespace) -> PlaygroundSettings:
    """Raises ConfigError for a duration that is none."""
    return PlaygroundSettings(
        endpoints=tuple(url.rstrip("/") for url in namespace.endpoint),
        model=namespace.model,
        sides=tuple(namespace.side),
        host=namespace.host,
        port=namespace.port,
        auth_file=namespace.auth_file.expanduser().absolute() if namespace.auth_file else None,
        user_header=namespace.user_header,
        trusted_proxies=tuple(namespace.trusted_proxy),
        promoters=tuple(namespace.promoter),
        public_hosts=tuple(namespace.public_host),
        prompt_sets=tuple(path.expanduser().absolute() for path in namespace.prompts),
        keep_traces_days=_days(namespace.keep_traces),
        max_prompt_chars=namespace.max_prompt_chars,
        max_turns=namespace.max_turns,
        max_streams_per_session=namespace.max_streams_per_session,
        max_streams=namespace.max_streams,
        max_waiting=namespace.max_waiting,
        max_body_bytes=namespace.max_body_bytes,
        has_mcp=namespace.mcp,
    )


def _days(text: str | None) -> float | None:
    try:
        return seconds_of(text) / _DAY_S if text is not None else None
    except ValueError as error:
        raise ConfigError([f"keep traces {error}"]) from error


def _serve(settings: PlaygroundSettings, page: PageMaker | None, *, is_opened: bool) -> None:
    access = Access(settings)

    def tell_listening(address: str) -> None:
        print(f"  playground  {address}", file=sys.stderr, flush=True)
        if is_opened and _has_display():
            webbrowser.open(address)

    with private_files() as cache:
        made = (page or _compare_page)(settings, access)
        run(make_app(made, settings, access, cache), settings, tell_listening)


def _compare_page(settings: PlaygroundSettings, access: Access) -> Page:
    """Imported here: it imports gradio, which reads what ``private_files`` has set."""
    try:
        from gradio_app import app
        from gradio_app.chat.endpoints import look_once
        from gradio_app.playground import Playground
        from gradio_app.versions.promotion import Promotions
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("gradio_app", "mlflow_finetune_plugin"):
            raise
        raise MissingExtraError(
            f"the playground needs {error.name}; fix: pip install 'mlflow-finetune[playground]'"
        ) from error
    playground = Playground(settings)
    served = asyncio.run(look_once(playground.endpoints))
    for fault in served.faults:
        logger.warning("%s It is asked again whenever somebody opens the page.", fault)
    model = settings.model or (served.registered[0] if len(served.registered) == 1 else None)
    if model is not None:
        playground.ledgers.open_early(model)
    promotions = Promotions()

    async def close() -> None:
        await asyncio.to_thread(promotions.stop)
        await playground.close()

    return Page(app.build(playground, model, access.may_promote, promotions), app.look(), close)


def _has_display() -> bool:
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    sys.exit(main())
