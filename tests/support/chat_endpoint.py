"""A real HTTP server that plays a language model behind OpenAI's API."""

import threading
import time

import uvicorn
from conftest import free_port
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route


class Endpoint:
    """An OpenAI-compatible server whose model is a function of the messages."""

    def __init__(self, reply):
        self.reply, self.asked, self.headers = reply, [], []
        self.url = f"http://127.0.0.1:{free_port()}/v1"
        # log_config: uvicorn's own shuts every handler of the process down, and absl's closes what it wrote to: pytest's capture
        app = Starlette(routes=[Route("/v1/chat/completions", self._answer, methods=["POST"])])
        port = int(self.url.split(":")[2].split("/")[0])
        self._server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
        self._thread = threading.Thread(target=self._server.run)

    async def _answer(self, request):
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        said = self.reply(body)
        if isinstance(said, tuple):
            return PlainTextResponse(said[1], said[0])
        text, headers = (said, {}) if isinstance(said, str) else (said["text"], said["headers"])
        return JSONResponse({"choices": [{"message": {"role": "assistant", "content": text}}]}, headers=headers)

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()


def shown(body):
    """The two answers that the judge sees, as the marks say."""
    text, answers = body["messages"][1]["content"], []
    for name in ("answer A", "answer B"):
        code = body["messages"][0]["content"].split("carry the code ")[1][:16]
        answers.append(text.split(f"<<<{name} {code}>>>\n")[1].split(f"\n<<<end of {name} {code}>>>")[0])
    return answers


def prefers_longer(body):
    a, b = shown(body)
    return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"
