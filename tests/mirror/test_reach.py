"""Is it told in time, and in whole, why a server cannot be reached, and is it left alone?"""

from __future__ import annotations

import email.utils
import json
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_track.backends.mlflow.paths import legal_path, quoted
from mlflow_track.backends.mlflow.reach import ping, proxy_of, readable, seconds_of
from mlflow_track.backends.protocol import Unavailable
from mlflow_track.mirror.outage import Outage
from mlflow_track.mirror.retries import Retries
from tests.mirror.conftest import open_store
from tests.mirror.faults import FaultProxy
from tests.mirror.gateway import Gateway, Reply, gateway_to


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with gateway_to() as gateway:
        yield gateway


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# --- reasons ---


def test_what_an_mlflow_server_says_is_told_to_its_end(gateway):
    message = "checked by " + "policy " * 60 + "and denied: ask ROOM-4711 for access"
    body = json.dumps({"error_code": "PERMISSION_DENIED", "message": message})
    gateway.rule = lambda *_: Reply(403, body, {"Content-Type": "application/json"})
    with pytest.raises(Unavailable, match="ROOM-4711 for access"):
        open_store(gateway.uri).check()


@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 502, 503])
def test_the_page_of_a_gateway_is_told_with_its_status(gateway, status):
    page = "<html><style>p {color: red}</style><p>quota of <b>VISION-42</b>\n is used up</html>"
    gateway.rule = lambda *_: Reply(status, page, {"Content-Type": "text/html"})
    with pytest.raises(Unavailable, match=rf"answers {status}: quota of VISION-42 is used up") as e:
        open_store(gateway.uri).check()
    assert "color" not in str(e.value)


def test_a_long_page_is_cut_and_a_password_masked():
    assert len(readable("x" * 100_000)) < 5000
    with pytest.raises(Unavailable) as raised:
        ping("mysql+pymysql2://alice:hunter2@127.0.0.1:9/db")
    assert "hunter2" not in str(raised.value)


# --- proxies ---


@pytest.mark.parametrize("ask", [ping, lambda uri: open_store(uri).check()])
def test_a_proxy_that_is_away_is_named(monkeypatch, ask):
    proxy = f"http://alice:hunter2@127.0.0.1:{free_port()}"
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(Unavailable, match=r"tracking\.invalid:5000 through the proxy") as raised:
        ask("http://tracking.invalid:5000")
    assert "hunter2" not in str(raised.value)
    assert proxy.rpartition("@")[2] in str(raised.value)


@pytest.mark.parametrize("ask", [ping, lambda uri: open_store(uri).check()])
def test_a_proxy_that_asks_for_a_password_is_named(gateway, monkeypatch, ask):
    gateway.rule = lambda *_: Reply(407, "name and password, please")
    monkeypatch.setenv("http_proxy", gateway.uri)
    with pytest.raises(Unavailable, match=rf"the proxy {gateway.uri} .*answers 407: name and"):
        ask("http://tracking.invalid:5000")


def test_a_server_that_is_not_behind_the_proxy_is_not_said_to_be(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert proxy_of("http://127.0.0.1:5000") == ""
    assert proxy_of("http://elsewhere:5000") == "http://127.0.0.1:9"
    with pytest.raises(Unavailable) as raised:
        ping(f"http://127.0.0.1:{free_port()}")
    assert "proxy" not in str(raised.value)


# --- is it there ---


@pytest.mark.parametrize("status", [200, 301, 401, 403, 404])
def test_a_server_that_answers_is_there(gateway, status):
    gateway.rule = lambda *_: Reply(status)
    ping(gateway.uri)


@pytest.mark.parametrize("mode", ["refuse", "hang", "drip"])
def test_a_server_that_does_not_answer_is_away_within_seconds(gateway, mode, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr("mlflow_track.backends.mlflow.reach._SECONDS", 1.0)
    proxy = FaultProxy(gateway.port)
    gateway.rule = lambda *_: Reply(200)
    try:
        proxy.become(mode)
        began = time.monotonic()
        with pytest.raises(Unavailable) as raised:
            ping(proxy.uri)
        assert time.monotonic() - began < 20
        assert not raised.value.is_answer and not raised.value.is_final
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file:///data/mlruns", r"/data/mlruns.*sqlite:////data/mlflow\.db"),
        ("/data/mlruns", r"/data/mlruns.*sqlite:////data/mlflow\.db"),
        ("nonsense://alice:hunter2@x", "MLflow has no store of the scheme 'nonsense'"),
        ("mysql://h/db", "driver MySQLdb is not installed"),
    ],
)
def test_a_uri_of_which_mlflow_has_no_store_is_not_waited_for(uri, said):
    with pytest.raises(Unavailable, match=said) as raised:
        ping(uri)
    assert raised.value.is_final and "hunter2" not in str(raised.value)


def test_a_folder_is_a_store_where_mlflow_is_told_so(monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    ping("file:///data/mlruns")


def test_a_bare_folder_costs_a_warning_and_no_wait(run_script):
    code = """
    import time, mlflow_track as mt
    with mt.start_run(experiment="e") as run:
        run.log_metric("a", 1.0, step=0)
        began = time.monotonic()
    assert time.monotonic() - began < 20
    """
    patience = {"MLFLOW_TRACK_FINISH_TIMEOUT": "60", "MLFLOW_TRACK_MIRROR_LINGER": "3600"}
    done = run_script(code, MLFLOW_TRACKING_URI="./mlruns", **patience)
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert "mlruns" in warning and "sqlite:///" in warning
    (log,) = Path("runs").rglob("mirror/mlflow.lock")
    from mlflow_track.record.lock import is_locked

    assert not is_locked(log)


# --- Retry-After ---


@pytest.mark.parametrize("status", [429, 503])
def test_the_time_that_a_server_asks_for_is_known(gateway, status):
    gateway.rule = lambda *_: Reply(status, "later", {"Retry-After": "17"})
    for ask in (ping, lambda uri: open_store(uri).check()):
        with pytest.raises(Unavailable) as raised:
            ask(gateway.uri)
        assert raised.value.retry_after == 17.0


def test_a_date_to_retry_at_is_the_time_until_then():
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 98 <= seconds_of(later) <= 101
    for text in (None, "", "soon", "-5", email.utils.formatdate(0, usegmt=True)):
        assert seconds_of(text) == 0.0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.integers())
def test_no_attempt_comes_before_the_server_asked_for_it(asked, seed):
    random.seed(seed)
    outage = Outage("mlflow", lambda text: None, lambda: "", 0)
    for seconds in asked:
        pause = outage.failed("busy", seconds)
        assert pause >= min(seconds, 3600.0)
        assert pause <= 1.25 * max(60.0, min(seconds, 3600.0))


def test_a_refused_file_is_not_sent_before_its_time():
    now = [0.0]
    retries = Retries(lambda: now[0])
    assert not retries.failed("a", Unavailable("busy", retry_after=30.0), lambda: True)
    now[0] = 29.0
    assert not retries.is_due("a") and retries.is_due("b")
    now[0] = 30.0
    assert retries.is_due("a") and "busy" in (retries.waiting or "")
    assert not retries.failed("a", Unavailable("busy", retry_after=float("inf")), lambda: True)
    now[0] += 3600.0
    assert retries.is_due("a")


def test_an_item_is_given_up_only_where_the_server_answers_something_else():
    now, is_there = [0.0], [False]
    retries = Retries(lambda: now[0])
    for _ in range(20):
        assert not retries.failed("a", Unavailable("no"), lambda: is_there[0])
        now[0] += 60.0
    is_there[0] = True
    assert retries.failed("a", Unavailable("no"), lambda: is_there[0])
    assert retries.waiting is None


# --- names of artifacts ---


@given(st.text("ab/.#?%;:&= \\\u00fc\udce9\n25", min_size=1, max_size=12))
def test_a_name_is_kept_by_mlflow_as_it_is(name):
    from mlflow.utils.uri import validate_path_is_safe

    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    name = "/".join(parts) or "x"
    there = legal_path(name, is_asked_by_url=True)
    assert validate_path_is_safe(there) == there
    # As the client asks for it, and the server reads it from the URL.
    from requests.utils import requote_uri, unquote

    url = requote_uri(f"http://h/{quoted(there)}")
    assert "?" not in url and "#" not in url
    assert unquote(url.removeprefix("http://h/")) == there
