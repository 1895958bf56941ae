"""Pictures behind links are fetched from allowed hosts only, with a real HTTPS server."""

import datetime
import io
import ipaddress
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from mlflow_finetune_plugin.images import PictureFault, PictureLimits, PictureLinks, read_picture
from mlflow_finetune_plugin.images import links as links_module


def png(side=20):
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(stream, "PNG")
    return stream.getvalue()


def certificate(folder):
    """Write a key and a certificate for localhost that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


class Handler(BaseHTTPRequestHandler):
    requested: ClassVar[list[str]] = []

    def do_GET(self):
        self.requested.append(self.path)
        port = self.server.server_address[1]
        if self.path.startswith("/picture.png") or (self.path == "/busy.png" and self.requested.count("/busy.png") > 2):
            self.answer(200, png())
        elif self.path == "/moved.png":
            self.answer(302, b"", location="/picture.png")
        elif self.path == "/elsewhere.png":
            self.answer(302, b"", location=f"https://127.0.0.1:{port}/picture.png")
        elif self.path == "/plain.png":
            self.answer(302, b"", location=f"http://localhost:{port}/picture.png")
        elif self.path == "/circle.png":
            self.answer(302, b"", location="/circle.png")
        elif self.path == "/large.png":
            self.answer(200, b"0" * 200_000)
        elif self.path == "/page.html":
            self.answer(200, b"<html>")
        else:
            self.answer(503 if self.path.startswith(("/busy", "/down")) else 404, b"")

    def answer(self, status, content, location=None):
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    cert, key = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    monkeypatch.setattr(links_module, "_PAUSE_S", 0.01)
    monkeypatch.setattr(Handler, "requested", [])
    server = ThreadingHTTPServer(("localhost", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["picture.png", "picture.png?signature=secret", "moved.png", "busy.png"])
def test_a_picture_of_an_allowed_host_is_fetched(server, path):
    picture = read_picture(f"https://{server}/{path}", folder=None, links=PictureLinks([server.upper()]))
    assert picture.content == png()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("link", "words", "requested"),
    [
        ("https://{server}/none.png", "picture behind a link: .*the host answered 404$", 1),
        ("https://{server}/elsewhere.png", "data.picture_hosts does not allow this host", 1),
        ("https://{server}/plain.png", "only https is fetched", 1),
        ("https://{server}/circle.png", "more than 3 redirects", 4),
        ("https://{server}/page.html", "not a picture in one of the formats", 1),
        ("http://{server}/picture.png", "only https is fetched", 0),
        ("https://127.0.0.1/picture.png", "data.picture_hosts does not allow this host", 0),
        ("https://{server}@example.com/picture.png", "data.picture_hosts does not allow this host", 0),
        ("https://localhost/picture.png", "data.picture_hosts does not allow this host", 0),
        ("https://[::1/picture.png", "picture behind a link", 0),
        ("s3://{server}/picture.png", "only https is fetched", 0),
    ],
)
def test_nothing_else_is_fetched(server, link, words, requested):
    with pytest.raises(PictureFault, match=words):
        read_picture(link.format(server=server), folder=None, links=PictureLinks([server]))
    assert len(Handler.requested) == requested


@pytest.mark.bad_input
def test_a_large_answer_is_not_read_to_its_end(server):
    with pytest.raises(PictureFault, match="picture too large"):
        PictureLinks([server]).fetch(f"https://{server}/large.png", PictureLimits(max_bytes=100_000))


@pytest.mark.fault
def test_a_host_that_fails_is_asked_three_times_and_the_query_is_not_shown(server):
    with pytest.raises(PictureFault, match=r"/down\.png: the host answered 503$"):
        PictureLinks([server]).fetch(f"https://{server}/down.png?signature=secret", PictureLimits())
    assert len(Handler.requested) == 3
    with pytest.raises(PictureFault, match="ConnectError") as fault:
        PictureLinks(["localhost:1"]).fetch("https://localhost:1/picture.png?signature=secret", PictureLimits())
    assert "secret" not in str(fault.value)


def test_without_hosts_the_fault_names_the_setting():
    with pytest.raises(PictureFault, match=r"allow its host in data\.picture_hosts"):
        read_picture("https://example.com/a.png", folder=None, links=PictureLinks())
    with pytest.raises(PictureFault, match="nothing is fetched from the network"):
        read_picture("https://example.com/a.png", folder=None)
