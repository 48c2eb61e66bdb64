# SPDX-License-Identifier: Apache-2.0
"""A server on this machine; it says what a test wants, and notes what it hears."""

import contextlib
import dataclasses
import functools
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Reply = Callable[[dict], tuple[int, Any]]
"""Body of a request -> status, and bytes or an object that becomes JSON."""


@dataclasses.dataclass
class Loopback:
    """A server in a thread, and what it was asked."""

    reply: Reply
    misbehave: Callable[[int, dict], tuple[int, Any] | None] = lambda number, body: None
    """Number of the request, its body -> what it answers instead, if anything."""
    url: str = ""
    """Up to the version."""
    paths: list[str] = dataclasses.field(default_factory=list)
    """Behind the version, as the next three of each request."""
    asked: list[dict] = dataclasses.field(default_factory=list)
    headers: list[dict] = dataclasses.field(default_factory=list)
    times: list[float] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def serving(reply: Reply) -> Iterator[Loopback]:
    """Serves until the block ends; requests are answered in threads of their own."""
    state, lock = Loopback(reply), threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(state.asked)
                state.paths.append(self.path.removeprefix("/v1"))
                state.asked.append(body)
                state.headers.append(dict(self.headers))
                state.times.append(time.monotonic())
            code, said = state.misbehave(number, body) or state.reply(body)
            text = said if isinstance(said, bytes) else json.dumps(said).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(code)
                if code == 429:
                    self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, format, *args):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    # How long the shutdown waits for it: half a second unless told.
    serve = functools.partial(web.serve_forever, poll_interval=0.01)
    threading.Thread(target=serve, daemon=True).start()
    state.url = f"http://127.0.0.1:{web.server_address[1]}/v1"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("no_proxy", "127.0.0.1")
            yield state
    finally:
        web.shutdown()
        web.server_close()


def chat_message(content: Any, *, finish: str = "stop", reasoning: str = "") -> dict:
    """A response of the chat-completions protocol."""
    said = {"role": "assistant", "content": content, "reasoning_content": reasoning}
    usage = {"completion_tokens": 9, "completion_tokens_details": None}
    return {"choices": [{"message": said, "finish_reason": finish}], "usage": usage}
