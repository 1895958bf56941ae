"""Attacks over real HTTP on a real page."""

import asyncio
import contextlib
import json
import os
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AuthenticationError
from playground_process import playground

from mlflow_finetune_plugin.credentials.users import add_user, remove_user

pytestmark = pytest.mark.process

JOIN = "/gradio_api/queue/join"
FOREIGN = "http://evil.example"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with playground(tmp_path_factory.mktemp("open")) as found:
        yield found


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    file = tmp_path_factory.mktemp("users") / "users.yaml"
    add_user(file, "alice", "correct horse", may_promote=True)
    add_user(file, "bob", "battery staple")
    return file


@pytest.fixture(scope="module")
def locked(users, tmp_path_factory):
    with playground(tmp_path_factory.mktemp("locked"), "--auth-file", str(users)) as found:
        yield found


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
    folder = tmp_path_factory.mktemp("behind")
    arguments = ("--user-header", "X-Forwarded-User", "--promoter", "alice", "--public-host", "play.example.com")
    with playground(folder, *arguments) as found:
        yield found


def join(fn_index=0, session="s1", data=()):
    return {"data": list(data), "fn_index": fn_index, "session_hash": session}


def log_in(place, name, password):
    answer = place.ask("POST", "/login", data={"username": name, "password": password})
    assert answer.status_code == 200, answer.text
    return dict(answer.cookies)


def test_whoever_sits_here_is_the_local_visitor(page):
    client = Client(page.url, verbose=False)
    assert client.predict(api_name="/who") == "None promotes"
    assert list(client.submit("3", api_name="/count")) == ["0", "1", "2"]


@pytest.mark.bad_input
def test_another_site_can_change_nothing(page):
    for headers in (
        {"Origin": FOREIGN},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{page.port + 1}"},
        {"Origin": page.url, "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        answer = page.ask("POST", JOIN, json=join(), headers=headers)
        assert (answer.status_code, answer.text) == (403, "requests from other sites are refused\n"), headers
    assert page.ask("POST", JOIN, json=join(), headers={"Origin": page.url}).status_code == 200
    same = {"Origin": page.url, "Sec-Fetch-Site": "same-origin"}
    assert page.ask("POST", JOIN, json=join(), headers=same).status_code == 200


def test_another_site_may_link_and_not_embed_or_fetch(page):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert page.ask("GET", "/", headers=link).status_code == 200
    assert page.ask("GET", "/config", headers=link).status_code == 403
    assert page.ask("GET", "/", headers=link | {"Sec-Fetch-Dest": "iframe"}).status_code == 403
    assert (
        page.ask("GET", "/config", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}).status_code
        == 403
    )


def test_no_other_origin_is_told_that_it_may_read(page):
    for method, path in (("GET", "/config"), ("OPTIONS", JOIN), ("GET", "/")):
        headers = {"Origin": "http://localhost:9999", "Access-Control-Request-Method": "POST"}
        answer = page.ask(method, path, headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert page.ask("OPTIONS", JOIN, headers={"Origin": FOREIGN}).status_code == 403


@pytest.mark.bad_input
def test_a_name_that_was_made_to_mean_this_machine_is_refused(page):
    for host in (f"evil.example:{page.port}", "127.0.0.1.evil.example", "localhost@evil.example", ""):
        answer = page.ask("GET", "/config", headers={"Host": host})
        assert answer.status_code in (400, 421), host
    for host in (f"localhost:{page.port}", "LOCALHOST:1", f"[::1]:{page.port}"):
        assert page.ask("GET", "/config", headers={"Host": host}).status_code == 200, host


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../../../etc/passwd",
        "/gradio_api/file=README.md",
        "/gradio_api/file=/proc/self/environ",
        "/gradio_api/file=http://127.0.0.1:9/",
        "/gradio_api/file/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1:9/",
        "/assets/../../../../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static/..%2f..%2f..%2fetc%2fpasswd",
        "/assets//etc/passwd",
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/runs",
        "/gradio_api/token",
        "/gradio_api/dev/reload",
        "/gradio_api/upload_progress?upload_id=x",
        "/gradio_api/custom_component/x/client/x/x.js",
        "/gradio_api/deep_link?session_hash=s",
        "/gradio_api/vibe-code",
        "/gradio_api/mcp/sse",
        "/docs",
        "/openapi.json",
    ],
)
def test_nothing_of_the_disk_and_no_route_that_the_page_needs_not(page, path):
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as raw:  # clients tidy a path up
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split()[1] in (b"404", b"403"), answer[:300]
    assert b"root:" not in answer


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "path", ["upload", "component_server", "process_recording", "vibe-edit", "stream/x", "queue/data"]
)
def test_nothing_is_uploaded_or_edited(page, path):
    answer = page.ask("POST", f"/gradio_api/{path}", files={"files": ("x.html", b"<script>1</script>")})
    assert answer.status_code == 404


@pytest.mark.bad_input
def test_a_path_in_a_request_s_data_brings_no_file_into_reach(page):
    """A page that is mounted checks none by itself: Gradio believes that it was not launched."""
    index = next(d["id"] for d in page.ask("GET", "/config").json()["dependencies"] if d["api_name"] == "file")
    for path in ("/etc/passwd", str(page.log)):
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
        session = f"file-{os.path.basename(path)}"
        assert page.ask("POST", JOIN, json=join(index, session, data)).status_code == 200
        with httpx.stream("GET", f"{page.url}/gradio_api/queue/data?session_hash={session}", timeout=30) as stream:
            told = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
        end = next(one for one in told if one["msg"] == "process_completed")
        assert not end["success"], end


def test_a_file_that_a_handler_made_can_be_fetched_and_never_shown(page):
    client = Client(page.url, download_files=False, verbose=False)
    made = client.predict("<script>1</script>", api_name="/write")
    answer = page.ask("GET", f"/gradio_api/file={made['path']}")
    assert (answer.status_code, answer.text) == (200, "<script>1</script>")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["content-type"] == "application/octet-stream"
    folder = os.path.dirname(made["path"])
    assert page.ask("GET", f"/gradio_api/file={folder}").status_code == 404
    os.symlink("/etc/passwd", f"{folder}/link")
    assert page.ask("GET", f"/gradio_api/file={folder}/link").status_code == 404


def test_more_answers_stream_at_once_than_gradio_has_threads(page):
    async def all_of_them():
        async with httpx.AsyncClient(
            base_url=page.url, timeout=60, limits=httpx.Limits(max_connections=None)
        ) as client:
            config = (await client.get("/config")).json()
            count = next(d["id"] for d in config["dependencies"] if d["api_name"] == "count")

            async def one(number):
                session = f"stream-{number}"
                await client.post(JOIN, json=join(count, session, ["50"]))
                async with client.stream("GET", f"/gradio_api/queue/data?session_hash={session}") as stream:
                    async for line in stream.aiter_lines():
                        if "process_completed" in line:
                            return json.loads(line[6:])["success"]
                return None

            return await asyncio.gather(*(one(number) for number in range(60)))

    assert asyncio.run(all_of_them()) == [True] * 60
    assert int(Client(page.url, verbose=False).predict(api_name="/most")) > 50


@pytest.mark.bad_input
def test_a_hundred_megabytes_are_not_read(page):
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as raw:
        raw.sendall(f"POST {JOIN} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n".encode())
        assert raw.recv(1000).split()[1] == b"413"  # before a byte of it was sent

    def chunks():
        for _ in range(100):
            yield b"x" * 1_000_000

    try:
        answer = page.ask("POST", JOIN, content=chunks())
        assert answer.status_code == 413
    except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
        pass  # it hung up while we were still sending
    assert time.monotonic() - began < 10
    assert page.ask("GET", "/healthz").json() == {"status": "ok"}


@pytest.mark.bad_input
def test_headers_without_an_end_are_not_read(page):
    with socket.create_connection(("127.0.0.1", page.port), timeout=30) as raw, contextlib.suppress(ConnectionError):
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Endless: ")
        for _ in range(1600):
            raw.sendall(b"x" * 65536)
        pytest.fail("100 MB of a header were taken")
    assert page.ask("GET", "/healthz").json() == {"status": "ok"}


def test_every_answer_carries_the_headers(page):
    for path in ("/", "/config", "/gradio_api/file=/etc/passwd", "/healthz", "/theme.css"):
        headers = page.ask("GET", path).headers
        policy = headers["content-security-policy"]
        for part in ("default-src 'self'", "object-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"):
            assert part in policy
        scripts = next(part for part in policy.split("; ") if part.startswith("script-src "))
        assert "unsafe-inline" not in scripts
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
    one, other = (page.ask("GET", "/").headers["content-security-policy"] for _ in range(2))
    assert one != other


def test_files_that_are_named_by_their_content_are_kept_by_browsers_and_nothing_else_is(page):
    text = page.ask("GET", "/").text
    asset = re.search(r"/assets/index-[\w-]+\.js", text).group()
    headers = {"Accept-Encoding": "br, gzip"}
    kept = page.ask("GET", asset, headers=headers)
    assert "immutable" in kept.headers["cache-control"]
    assert "content-encoding" not in kept.headers, "on one machine packing costs more than it saves"
    for path in ("/", "/config", "/theme.css", "/assets/nothing-12345678.js", "/healthz"):
        assert "immutable" not in page.ask("GET", path).headers.get("cache-control", "")


def test_a_stranger_sees_the_login_page_and_nothing_else(locked):
    page = locked.ask("GET", "/", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (303, "/login")
    form = locked.ask("GET", "/login")
    assert form.status_code == 200
    assert "<script" not in form.text
    for method, path in (("GET", "/config"), ("GET", "/gradio_api/info"), ("POST", JOIN), ("GET", "/theme.css")):
        assert locked.ask(method, path).status_code == 401
    with pytest.raises(AuthenticationError):
        Client(locked.url, verbose=False)


def test_handlers_know_who_has_logged_in(locked):
    assert (
        Client(locked.url, auth=("alice", "correct horse"), verbose=False).predict(api_name="/who") == "alice promotes"
    )
    assert Client(locked.url, auth=("bob", "battery staple"), verbose=False).predict(api_name="/who") == "bob watches"
    with pytest.raises(AuthenticationError):
        Client(locked.url, auth=("bob", "correct horse"), verbose=False)


def test_the_cookie_is_kept_from_scripts_and_other_sites(locked):
    answer = locked.ask("POST", "/login", data={"username": "alice", "password": "correct horse"})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "alice" not in cookie
    foreign = locked.ask(
        "POST", "/login", data={"username": "alice", "password": "correct horse"}, headers={"Origin": FOREIGN}
    )
    assert foreign.status_code == 403
    assert "set-cookie" not in foreign.headers


def test_logging_out_ends_the_session_and_needs_a_click(locked):
    cookies = log_in(locked, "bob", "battery staple")
    assert locked.ask("GET", "/logout", cookies=cookies).status_code == 200
    assert locked.ask("GET", "/config", cookies=cookies).status_code == 200
    assert locked.ask("POST", "/logout", cookies=cookies).headers["location"] == "/login"
    assert locked.ask("GET", "/config", cookies=cookies).status_code == 401


def test_a_gradio_session_is_its_first_visitor_s(locked):
    alice, bob = log_in(locked, "alice", "correct horse"), log_in(locked, "bob", "battery staple")
    mine = join(session="of-alice")
    assert locked.ask("POST", JOIN, json=mine, cookies=alice).status_code == 200
    assert locked.ask("POST", JOIN, json=mine, cookies=bob).status_code == 403
    for path in ("/gradio_api/queue/data?session_hash=of-alice", "/gradio_api/heartbeat/of-alice"):
        assert locked.ask("GET", path, cookies=bob).status_code == 403
    cancel = {"session_hash": "of-alice", "fn_index": 0, "event_id": "x"}
    assert locked.ask("POST", "/gradio_api/cancel", json=cancel, cookies=bob).status_code == 403


@pytest.mark.bad_input
def test_guessing_locks_out_nobody_and_a_session_ends_with_its_password(users, tmp_path):
    """Whoever guesses at a name is delayed; the user enters with the right password, at that address too."""
    add_user(users, "carol", "open sesame")
    with playground(tmp_path, "--auth-file", str(users), "--trusted-proxy", "127.0.0.1") as place:

        def attempt(password, address):
            form = {"username": "carol", "password": password}
            return place.ask("POST", "/login", data=form, headers={"X-Forwarded-For": address}).status_code

        assert [attempt(f"guess {number}", "10.0.0.1") for number in range(6)] == [401] * 6
        began = time.monotonic()
        assert attempt("open sesame", "10.0.0.1") == 200
        assert time.monotonic() - began >= 2, "the seventh attempt in a row waits for two seconds"
        with ThreadPoolExecutor(40) as pool:
            assert list(pool.map(attempt, ["guess"] * 40, ["10.0.0.1"] * 40)).count(429) >= 20
        assert attempt("open sesame", "10.0.0.2") == 200
        cookies = log_in(place, "bob", "battery staple")
        assert place.ask("GET", "/config", cookies=cookies).status_code == 200
        remove_user(users, "bob")
        assert place.ask("GET", "/config", cookies=cookies).status_code == 401
        add_user(users, "bob", "battery staple")
        assert place.ask("GET", "/config", cookies=cookies).status_code == 401  # the hash is another


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (JOIN, b'{"data": [], "fn_index": -1, "session_hash": "q"}'),
        (JOIN, b'{"data": [], "fn_index": 99999999999999999999, "session_hash": "q"}'),
        (JOIN, b'{"data": [NaN], "fn_index": 0, "session_hash": "q"}'),
        (JOIN, b'{"data": [1e999], "fn_index": 0, "session_hash": "q"}'),
        (JOIN, b'{"data": ["\\ud800"], "fn_index": 0, "session_hash": "q\\ud800"}'),
        (JOIN, b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        (JOIN, b'{"data": [' + b"9" * 5000 + b"]}"),
        (JOIN, b""),
        ("/gradio_api/cancel", b'{"session_hash": NaN}'),
        ("/gradio_api/reset", b'{"event_id": "\\ud800"}'),
        ("/gradio_api/run/nothing", b'{"data": []}'),
        ("/gradio_api/run/predict", b'{"data": []}'),
        ("/gradio_api/run/predict", b'{"data": [], "fn_index": 99999}'),
        ("/gradio_api/call/nothing", b'{"data": []}'),
    ],
)
def test_bodies_that_gradio_cannot_read_are_refused(page, path, body):
    before = page.log.read_text()
    answer = page.ask("POST", path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"] in ("the body is not valid JSON", "the page has no such event handler")
    assert "Traceback" not in page.log.read_text().removeprefix(before)


@pytest.mark.bad_input
def test_a_form_that_is_no_login_is_refused(locked):
    fields = "&".join(f"field{number}=1" for number in range(1000))
    answer = locked.ask("POST", "/login", content=fields)
    assert (answer.status_code, answer.json()["detail"]) == (413, "the form is larger than 8,000 bytes")
    answer = locked.ask("POST", "/login", content="a=1&" * 1000)
    assert (answer.status_code, answer.json()["detail"]) == (400, "the form has more than 20 fields")


def test_the_proxy_says_who_asks(behind):
    named = {"X-Forwarded-User": "alice", "Host": "play.example.com"}
    assert behind.ask("GET", "/config", headers=named).json()["username"] == "alice"
    client = Client(behind.url, headers={"X-Forwarded-User": "alice"}, verbose=False)
    assert client.predict(api_name="/who") == "alice promotes"
    assert behind.ask("GET", "/config").status_code == 403
    twice = [("X-Forwarded-User", "bob"), ("X-Forwarded-User", "alice")]
    assert behind.ask("GET", "/config", headers=twice).status_code == 403
    rebound = behind.ask("GET", "/config", headers=named | {"Host": "evil.example"})
    assert (rebound.status_code, "fix: --public-host evil.example" in rebound.text) == (421, True)
    over_tls = {"Origin": "https://play.example.com", "X-Forwarded-Host": "play.example.com", "Host": "127.0.0.1"}
    assert behind.ask("POST", JOIN, json=join(), headers=named | over_tls).status_code == 200
    assert behind.ask("POST", JOIN, json=join(), headers=named | over_tls | {"Origin": FOREIGN}).status_code == 403


@pytest.mark.bad_input
def test_a_header_that_anybody_else_writes_opens_nothing(tmp_path):
    with playground(tmp_path, "--user-header", "X-Forwarded-User", "--trusted-proxy", "10.9.9.9") as place:
        forged = {"X-Forwarded-User": "alice", "X-Forwarded-For": "10.9.9.9", "Forwarded": "for=10.9.9.9"}
        answer = place.ask("GET", "/config", headers=forged)
        assert answer.status_code == 403
        assert "a trusted proxy must name the user" in answer.text


@pytest.mark.fault
def test_ends_within_five_seconds_while_a_page_listens(tmp_path):
    with playground(tmp_path) as place:
        with httpx.stream("GET", f"{place.url}/gradio_api/heartbeat/open-page", timeout=30) as stream:
            next(stream.iter_raw())
            began = time.monotonic()
            assert place.end() == 0
        assert time.monotonic() - began < 5
        assert place.log.read_text().endswith("the page was closed\n")
        assert not [path for path in tmp_path.iterdir() if path != place.log]


def test_faults_are_one_message_and_exit_code_2(tmp_path, workplace):
    refused = workplace.run(["gradio_app", "--endpoint", "http://127.0.0.1:9/v1", "--host", "0.0.0.0"])
    assert refused.returncode == 2
    assert refused.stdout.count("fix:") == 1
    assert "without a login only this machine may open the page" in refused.stdout
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(AssertionError, match="it ended with 2"):  # noqa: SIM117
        with playground(tmp_path, "--port", str(taken.getsockname()[1])):
            pass
    assert "the port is in use; fix: --port with another number" in next(tmp_path.glob("playground-*.log")).read_text()
