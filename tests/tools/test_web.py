"""`web_fetch`, `web_search` and `wikipedia` against local servers; what must not be reached is not."""

import asyncio
import gzip
import ipaddress
import json
import threading
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from midstream.core.errors import ConfigError, ToolUnavailable
from midstream.tools import Toolbox, ToolError, ToolUseConfig
from midstream.tools.load import load
from midstream.tools.web.addresses import is_public
from midstream.tools.web.wikipedia import WikipediaSettings, wikipedia_toolset

ARTICLE = "<p>Tides rise and fall because the moon and the sun pull at the sea. This happens twice a day.</p>" * 3
PAGE = f"""<html><head><title>Tides</title><script>evil()</script></head><body><nav>Home | About</nav>
<article><h1>Tides</h1>{ARTICLE}</article><footer>Imprint</footer></body></html>"""
DUCK = """<html><body><div class="result results_links"><h2><a class="result__a"
href="//duckduckgo.com/l/?uddg=https%3A%2F%2Fexample.org%2Ftides&rut=1">About <b>tides</b></a></h2>
<a class="result__snippet">They rise and fall.</a></div>
<div class="result result--ad"><a class="result__a" href="https://ads.example">Buy</a></div></body></html>"""
HITS = [{"title": "Tides", "url": "https://example.org/tides", "content": "Rise.", "description": "Rise."}] * 3


class Site(BaseHTTPRequestHandler):
    """A website, three search APIs and Wikipedia."""

    protocol_version = "HTTP/1.1"
    seen: list = []
    busy = 0

    def _send(self, body, kind="text/html; charset=utf-8", status=200, **headers):
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if "length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            if name != "length":
                self.send_header(name.replace("_", "-"), value)
        if "length" in headers:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.seen.append((self.path, self.headers, body))
        if self.path.startswith("/status/"):
            return self._answer(self.path, {})
        if self.path == "/html/":
            return self._send(DUCK)
        return self._send(json.dumps({"results": HITS}), "application/json")

    def do_GET(self):
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        self.seen.append((path, self.headers, query))
        try:
            self._answer(path, query)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, path, query):
        if path == "/page":
            self._send(PAGE)
        elif path == "/packed":
            self._send(gzip.compress(PAGE.encode()), Content_Encoding="gzip")
        elif path == "/bomb":
            self._send(gzip.compress(b"x" * 5_000_000), "text/plain", Content_Encoding="gzip")
        elif path == "/huge":
            self._send("x" * 300_000, "text/plain")
        elif path == "/endless":
            self._send("", "text/plain", length=None)
            for _ in range(2000):
                self.wfile.write(b"x" * 1000)
        elif path == "/slow":
            threading.Event().wait(2)
            self._send("late", "text/plain")
        elif path == "/image":
            self._send(b"\x89PNG", "image/png")
        elif path == "/loop":
            self._send("", status=302, Location="/loop")
        elif path == "/to":
            self._send("", status=302, Location=query["url"][0])
        elif path == "/relative":
            self._send("", status=301, Location="page")
        elif path.startswith("/status/"):
            self._send("<html>Are you a robot?</html>", status=int(path.split("/")[2]))
        elif path == "/failing/api.php":
            error = {"code": query["gsrsearch"][0], "info": "no luck"}
            self._send(json.dumps({"error": error}), "application/json")
        elif path == "/search":
            type(self).busy -= 1
            status = 503 if self.busy >= 0 else 200
            self._send(json.dumps({"results": HITS if query["q"] != ["nothing"] else []}), "application/json", status)
        elif path == "/res/v1/web/search":
            key = self.headers["X-Subscription-Token"]
            self._send(json.dumps({"web": {"results": HITS}}), "application/json", 200 if key == "right" else 401)
        elif path == "/w/api.php":
            pages = [
                {"index": 2, "title": "Moon", "extract": "A moon.", "fullurl": "https://en.wikipedia.org/wiki/Moon"},
                {
                    "index": 1,
                    "title": "Tide",
                    "extract": "Tides rise.",
                    "fullurl": "https://en.wikipedia.org/wiki/Tide",
                },
            ]
            found = {"query": {"pages": pages}} if query["gsrsearch"] != ["zzz"] else {"batchcomplete": True}
            self._send(json.dumps(found), "application/json")
        else:
            self._send("no", status=404)

    def log_message(self, *args): ...


@pytest.fixture(scope="module")
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def run(name, settings, *calls, box=None):
    """Calls of one tool, and their results with sources."""
    loaded = load([name], {name: settings})
    box = Toolbox(loaded.tools, toolsets=loaded.toolsets, max_result_chars=10_000, use=ToolUseConfig(outage="report"))

    async def all_of_them():
        async with AsyncExitStack() as resources:
            session = box.session()
            await session.open(resources)
            return [await session.run(name, arguments) for arguments in calls]

    return asyncio.run(all_of_them())


def fetch(site, *paths, **settings):
    settings = {"allow": [site], "max_kb": 100, **settings}
    return run("web_fetch", settings, *({"url": path if ":" in path else f"http://{site}{path}"} for path in paths))


def test_a_page_is_read_as_text_with_its_source(site):
    for call, result in fetch(site, "/page", "/packed", "/relative"):
        assert call.ok, call.result
        assert "Tides rise and fall" in call.result
        assert "evil" not in call.result and "Home | About" not in call.result
        assert result.parts[0].source.startswith(f"http://{site}/pa")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/huge", "larger than 100 kB"),
        ("/endless", "larger than 100 kB"),
        ("/bomb", "larger than 100 kB"),
        ("/slow", "took longer than 0.5 s"),
        ("/image", "the page is image/png, not text"),
        ("/loop", "redirects more than 5 times"),
        ("/missing", "status 404"),
    ],
)
def test_an_unreadable_page_is_an_error_of_the_call(site, path, reason):
    ((call, _),) = fetch(site, path, timeout_s=0.5 if path == "/slow" else 20.0)
    assert call.error_kind == "raised" and reason in call.result


def loopback(port):
    return [
        f"http://127.0.0.1:{port}/page",
        f"http://localhost:{port}/page",
        f"http://2130706433:{port}/page",
        f"http://0x7f000001:{port}/page",
        f"http://0177.0.0.1:{port}/page",
        f"http://127.1:{port}/page",
        f"http://127.0.0.1.:{port}/page",
        f"http://[::1]:{port}/page",
        f"http://[::ffff:127.0.0.1]:{port}/page",
        f"http://[::ffff:7f00:1]:{port}/page",
        f"http://0.0.0.0:{port}/page",
        f"http://[::]:{port}/page",
        f"http://①②⑦.⓪.⓪.①:{port}/page",
        f"HTTP://127.0.0.1:{port}/page",
    ]


REFUSED = [
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/latest/meta-data/",
    "http://[fd00:ec2::254]/",
    "http://[fe80::1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[2002:7f00:1::]/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "ftp://example.org/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:70/",
    "data:text/plain,hello",
    "http://user:password@example.org/",
    "http:///page",
    "no address at all",
    "http://[::1",
    "http://" + "a" * 3000,
]


def test_no_spelling_of_a_private_address_is_reachable(site):
    port = int(site.rpartition(":")[2])
    before = len(Site.seen)
    urls = [*loopback(port), *REFUSED]
    for url, (call, _) in zip(urls, fetch("nowhere:1", *urls), strict=True):
        assert call.error_kind == "raised", (url, call.result)
        assert len(call.result) < 300
    assert len(Site.seen) == before


def test_redirects_are_checked_like_addresses(site):
    other = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    port = other.server_address[1]
    targets = [f"/to?url={url}" for url in [*loopback(port)[:9], "http://169.254.169.254/", "file:///etc/passwd"]]
    for call, _ in fetch(site, *targets):
        assert call.error_kind == "raised" and "root:" not in call.result, call.result
    other.shutdown()


def test_a_name_that_resolves_differently_each_time_reaches_nothing(site, monkeypatch):
    """DNS rebinding: the first answer is public and the next ones loopback."""
    answers = iter(["93.184.215.14"])
    connected = []

    async def resolved(host, port):
        return [next(answers, "127.0.0.1")]

    async def connect(self, address, port, *_):
        connected.append(address)
        raise ConnectionRefusedError

    import httpcore

    monkeypatch.setattr("midstream.tools.web.addresses._resolved", resolved)
    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    port = site.rpartition(":")[2]
    calls = fetch("nowhere:1", f"http://rebind.example:{port}/page", f"http://rebind.example:{port}/page")
    assert connected == ["93.184.215.14"]
    assert "is not a public address" in calls[1][0].result


@pytest.mark.parametrize(
    "address", ["fec0::1", "fd00::1", "fe80::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"]
)
def test_private_addresses_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "2002:808:808::1"])
def test_public_addresses_are_public(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("backend", ["searxng", "brave", "tavily", "duckduckgo"])
def test_web_search_works_with_each_service(site, backend, monkeypatch):
    monkeypatch.setenv("SEARCH_KEY", "right")
    key = {"api_key_env": "SEARCH_KEY"} if backend in ("brave", "tavily") else {}
    settings = {"backend": backend, "url": f"http://{site}", "k": 2, **key}
    ((call, result),) = run("web_search", settings, {"query": "tides"})
    assert call.ok, call.result
    assert "https://example.org/tides" in call.result
    assert {part.source for part in result.parts} == {"https://example.org/tides"}
    assert len(result.parts) == (1 if backend == "duckduckgo" else 2)
    if backend == "tavily":
        assert Site.seen[-1][1]["Authorization"] == "Bearer right"


def test_a_busy_service_is_retried_and_a_wrong_key_is_an_outage(site, monkeypatch):
    searxng = {"backend": "searxng", "url": f"http://{site}"}
    Site.busy = 1
    (found, _), (nothing, _) = run("web_search", searxng, {"query": "tides"}, {"query": "nothing"})
    assert (found.ok, found.attempts) == (True, 2)
    assert nothing.result == "Error: no result"
    monkeypatch.setenv("SEARCH_KEY", "wrong")
    ((refused, _),) = run(
        "web_search", {"backend": "brave", "url": f"http://{site}", "api_key_env": "SEARCH_KEY"}, {"query": "tides"}
    )
    assert refused.error_kind == "unavailable" and "wrong" not in refused.result


@pytest.mark.parametrize("status", [202, 204, 301, 302, 404, 429, 432, 433, 503])
@pytest.mark.parametrize("backend", ["tavily", "duckduckgo"])
def test_a_status_other_than_200_is_an_outage_not_an_empty_result(site, status, backend, monkeypatch):
    monkeypatch.setenv("SEARCH_KEY", "right")
    key = {"api_key_env": "SEARCH_KEY"} if backend == "tavily" else {}
    settings = {"backend": backend, "url": f"http://{site}/status/{status}", "retries": 0, **key}
    ((call, _),) = run("web_search", settings, {"query": "tides"})
    assert call.error_kind == "unavailable" and str(status) in call.result


def test_a_query_that_a_service_refuses_is_an_error_of_the_call(site):
    settings = {"backend": "searxng", "url": f"http://{site}/status/422", "retries": 0}
    ((call, _),) = run("web_search", settings, {"query": "tides"})
    assert (call.error_kind, call.result) == ("raised", "Error: searxng does not take this query: status 422")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("maxlag", ToolUnavailable),
        ("readonly", ToolUnavailable),
        ("cirrussearch-too-busy-error", ToolUnavailable),
        ("cirrussearch-query-too-long", ToolError),
    ],
)
def test_an_error_of_mediawiki_is_not_an_empty_result(site, code, error):
    toolset = wikipedia_toolset(WikipediaSettings(url=f"http://{site}/failing/api.php"))
    with pytest.raises(error, match="no luck"):
        asyncio.run(toolset.call("wikipedia", {"query": code}))


def test_an_unreachable_service_is_an_outage():
    settings = {"backend": "searxng", "url": "http://127.0.0.1:9", "retries": 0}
    ((call, _),) = run("web_search", settings, {"query": "tides"})
    assert call.error_kind == "unavailable"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"backend": "searxng"}, "searxng needs url"),
        ({"backend": "brave"}, "brave needs api_key_env"),
        ({"backend": "tavily", "api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY holds no key"),
        ({"backend": "google"}, "backend"),
    ],
)
def test_settings_of_web_search_are_checked(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        load(["web_search"], {"web_search": settings})


def test_wikipedia_returns_introductions(site):
    settings = {"url": f"http://{site}/w/api.php", "k": 2}
    (found, result), (nothing, _) = run("wikipedia", settings, {"query": "tide"}, {"query": "zzz"})
    assert found.result == "Tide: Tides rise.\nMoon: A moon."
    assert result.parts[0].source == "https://en.wikipedia.org/wiki/Tide"
    assert nothing.result == "Error: no result"
