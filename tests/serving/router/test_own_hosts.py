import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from mlflow_finetune_plugin.serving.router.own_hosts import OwnHosts


def client(hosts):
    def refusal(error):
        return PlainTextResponse(error.code, error.status)

    own_hosts = Middleware(OwnHosts, hosts, refusal)
    routes = [Route(path, lambda request: PlainTextResponse("answer")) for path in ("/", "/healthz")]
    return TestClient(Starlette(routes=routes, middleware=[own_hosts]))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("host", "origin", "answer"),
    [
        ("localhost:8000", None, "answer"),
        ("bots.example", "https://bots.example", "answer"),
        ("bots.example.", None, "answer"),
        ("evil.example", None, "foreign_host"),
        ("bots.example", "https://evil.example", "foreign_origin"),
    ],
)
def test_only_the_allowed_names_are_answered(host, origin, answer):
    headers = {"host": host} | ({"origin": origin} if origin else {})
    assert client(frozenset({"localhost", "bots.example"})).get("/", headers=headers).text == answer
    assert client(None).get("/", headers=headers).text == "answer", "with API keys every name is answered"


def test_the_health_check_needs_no_name():
    assert client(frozenset({"localhost"})).get("/healthz", headers={"host": "10.0.0.7:8000"}).text == "answer"
