"""The judge at an endpoint, against a real HTTP server on this machine."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from made_run import PAIRS, make_run
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lorabench.base import UserError
from lorabench.config.judging import OpenAIJudgeSpec
from lorabench.scoring.judges.build import build
from lorabench.scoring.judges.comparison import Comparison
from lorabench.scoring.judges.endpoint import Pace, seconds
from lorabench.scoring.judges.questions import Ask, Item, asks

KEY = "sk-very-secret-4711"
Reply = tuple[int, dict[str, str], bytes]


def answer_of(text: Any) -> Reply:
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@dataclass
class Server:
    """Answers with the replies in their order, the last one again and again; remembers the requests."""

    url: str = ""
    replies: list[Reply | Callable[[dict], Reply]] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], dict]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    delay: float = 0.0


@pytest.fixture
def server() -> Iterator[Server]:
    state, lock = Server(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.requests.append((self.path, dict(self.headers), body))
                state.times.append(time.monotonic())
                reply = state.replies.pop(0) if len(state.replies) > 1 else state.replies[0]
            time.sleep(state.delay)
            status, headers, content = reply(body) if callable(reply) else reply
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client did not wait

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    about = PngInfo()
    about.add_text("parameters", "duolora")
    paths = [tmp_path / f"{name}.png" for name in ("a", "b", "subject", "style")]
    for number, path in enumerate(paths):
        Image.new("RGB", (60, 30), (40 * number, 0, 0)).save(path, pnginfo=about)
    item = Item((paths[0], paths[1]), (paths[2], paths[3]), ("mug_1", "ink_1"))
    return asks("pairwise", item, "both")[0]


def judge(server: Server, **settings: Any) -> Comparison:
    spec: dict[str, Any] = {
        "kind": "openai", "url": server.url, "model": "tiny-vlm", "key_variable": "TEST_JUDGE_KEY", "size": 20,
        "temperature": 0.0, "votes": 1, "max_tokens": 50, "timeout": 5.0, "retries": 2, "longest_wait": 0.5,
        "parallel": 1, "requests_per_minute": None,
    }  # fmt: skip
    return build(OpenAIJudgeSpec(**{**spec, **settings}), "cpu")


def test_request_has_bare_images_and_no_names(server: Server, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    server.replies = [answer_of('{"answer": "A"}')]
    assert judge(server, extra={"seed": 7}).answer(ask) == '{"answer": "A"}'
    [(path, headers, body)] = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == ("tiny-vlm", 0.0, 50, 7)
    [message] = body["messages"]
    images = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    assert len(images) == 4 and "mug_1" not in json.dumps(body) and "duolora" not in json.dumps(body)
    for url in images:
        with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) as image:
            assert image.size == (20, 10) and not image.info


def test_key_is_optional_and_nowhere_else(server: Server, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_JUDGE_KEY", raising=False)
    server.replies = [answer_of("A")]
    own = judge(server)
    own.answer(ask)
    assert "Authorization" not in server.requests[0][1]
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    assert KEY not in json.dumps(own.identity()) and KEY not in repr(vars(own))
    server.replies = [(401, {}, f"wrong key {KEY}".encode())]
    with pytest.raises(UserError, match=r"refused the request \(wrong key \*\*\*\); set the variable TEST_JUDGE_KEY"):
        own.answer(ask)
    assert len(server.requests) == 2  # a wrong key is not tried again


def test_busy_server_is_asked_again_after_its_wait(server: Server, ask: Ask) -> None:
    server.replies = [(429, {"Retry-After": "0.3"}, b"slow down"), (503, {"Retry-After": "0"}, b""), answer_of("B")]
    assert judge(server).answer(ask) == "B"
    assert server.times[1] - server.times[0] >= 0.3 and len(server.requests) == 3


def test_server_that_asks_for_long_wait_ends_run(server: Server, ask: Ask) -> None:
    server.replies = [(429, {"Retry-After": "3600"}, b"quota")]
    with pytest.raises(
        UserError, match=r"answered 429 \(quota\), and asks to wait 3600 s; run the command again later"
    ):
        judge(server).answer(ask)
    assert len(server.requests) == 1


def test_timeout_is_tried_again_then_reported(server: Server, ask: Ask) -> None:
    server.replies, server.delay = [answer_of("A")], 0.4
    own = judge(server, timeout=0.1, retries=1, longest_wait=1.0)
    with pytest.raises(UserError, match=r"did not answer within 0.1 s \(2 attempts\); answers so far are kept"):
        own.answer(ask)
    assert len(server.requests) == 2


def test_malformed_answer_is_tried_again(server: Server, ask: Ask) -> None:
    server.replies = [(200, {}, b"<html>"), answer_of("A")]
    assert judge(server, longest_wait=1.0).answer(ask) == "A"
    for content in (b"<html>", b"{}", b'{"choices": []}', b"[1]"):
        server.replies = [(200, {}, content)]
        with pytest.raises(UserError, match=r"sent a malformed answer \(.*\) \(1 attempts\)"):
            judge(server, retries=0).answer(ask)


def test_refusal_of_model_is_invalid_answer(server: Server, ask: Ask) -> None:
    server.replies = [answer_of(None)]
    assert judge(server).answer(ask) == ""


def test_other_errors_are_not_tried_again(server: Server, ask: Ask) -> None:
    server.replies = [(404, {}, b'{"error": "no model tiny-vlm"}')]
    with pytest.raises(UserError, match="answered 404"):
        judge(server).answer(ask)
    assert len(server.requests) == 1


def test_server_that_is_not_there(ask: Ask) -> None:
    with pytest.raises(UserError, match=r"cannot be reached \(ConnectError\) \(1 attempts\)"):
        judge(Server(url="http://127.0.0.1:9/v1"), retries=0).answer(ask)
    with pytest.raises(UserError, match="is not a valid URL"):
        judge(Server(url="localhost:9")).answer(ask)


def test_pace_spreads_requests() -> None:
    pace, start = Pace(1200), time.monotonic()
    for _ in range(5):
        pace.wait()
    assert 0.2 <= time.monotonic() - start < 0.4


def test_retry_after_can_be_date() -> None:
    assert seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert (seconds("Wed, 21 Oct 2065 07:28:00 GMT") or 0) > 3e7


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": None}, "use judge.model=gpt-4o"),
        ({"votes": 3}, "use judge.temperature=1"),
        ({"url": "https://api.openai.com/v1"}, "needs a key in the environment; use export TEST_JUDGE_KEY=<key>"),
    ],
)
def test_settings_are_checked(
    server: Server, settings: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEST_JUDGE_KEY", raising=False)
    with pytest.raises(UserError, match=words):
        judge(server, **settings)


def test_command_judges_at_endpoint(server: Server, tmp_path: Path, commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that always takes the first image, by the command line; the key must not be in any file."""
    runs = [make_run(tmp_path / name, name, pairs=PAIRS[:2], images=1) for name in ("direct", "duolora")]
    server.replies = [answer_of('{"answer": "A"}')]
    arguments = [
        "task=judge", f"runs=[{runs[0]},{runs[1]}]", "judge=openai", f"judge.url={server.url}", "judge.model=tiny-vlm",
        f"output={tmp_path / 'out'}",
    ]  # fmt: skip
    done = commands.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "The image shown first won 40 of 40 answers" in done.stdout
    assert "| direct | duolora | 0 | 2 | 0 | 0 |" in done.stdout
    asked = len(server.requests)
    assert asked == 40 and commands.run(*arguments).returncode == 0 and len(server.requests) == asked
    keys = json.loads((tmp_path / "out" / "adhoc" / "judge-openai-pairwise" / "manifest.json").read_text())
    assert set(keys["verdict_keys"]) == {path.name for path in (tmp_path / "out" / "store" / "judge").iterdir()}
