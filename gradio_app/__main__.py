"""``python -m gradio_app``: serve the playground for endpoints that run already.

``mlflow-finetune playground`` starts this program, and an endpoint for it where none is given.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import webbrowser
from collections.abc import Callable

from gradio_app.arguments import new_parser, read_settings
from gradio_app.settings import PlaygroundSettings, check_settings
from gradio_app.web.access import Access
from gradio_app.web.server import Page, check_address, make_app, private_files, run
from mlflow_finetune_plugin.errors import FinetuneError, MissingExtraError

logger = logging.getLogger(__name__)

PageMaker = Callable[[PlaygroundSettings, Access], Page]


def main(argv: list[str] | None = None, page: PageMaker | None = None) -> int:
    """Serve the playground until Ctrl-C or SIGTERM.

    Args:
        argv: Arguments; None: those of the process.
        page: Builds the page to serve; None: the comparison page.

    Returns:
        The exit code: 0 after an orderly end, 2 with one message for a fault in the arguments, 130 after Ctrl-C.
    """
    namespace = new_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        settings = read_settings(namespace)
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


def _serve(settings: PlaygroundSettings, page: PageMaker | None, *, is_opened: bool) -> None:
    access = Access(settings)

    def announce(address: str) -> None:
        print(f"  playground  {address}", file=sys.stderr, flush=True)
        if is_opened and _has_display():
            webbrowser.open(address)

    with private_files() as cache:
        served_page = (page or _compare_page)(settings, access)
        run(make_app(served_page, settings, access, cache), settings, announce)


def _compare_page(settings: PlaygroundSettings, access: Access) -> Page:
    """Build the comparison page. Gradio is imported here because it reads the folders that ``private_files`` sets."""
    try:
        from gradio_app import app
        from gradio_app.chat.endpoints import discover_once
        from gradio_app.playground import Playground
        from gradio_app.versions.promotion import Promotions
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("gradio_app", "mlflow_finetune_plugin"):
            raise
        raise MissingExtraError(
            f"the playground needs the package {error.name}; fix: pip install 'mlflow-finetune[playground]'"
        ) from error
    playground = Playground(settings)
    served = asyncio.run(discover_once(playground.endpoints))
    for fault in served.faults:
        logger.warning("%s The playground tries again when the page is opened.", fault)
    model = settings.model or (served.registered[0] if len(served.registered) == 1 else None)
    if model is not None:
        playground.ledgers.open_early(model)
    promotions = Promotions()

    async def close() -> None:
        await asyncio.to_thread(promotions.stop)
        await playground.close()

    return Page(app.build(playground, model, access.may_promote, promotions), app.theme(), close)


def _has_display() -> bool:
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    sys.exit(main())
