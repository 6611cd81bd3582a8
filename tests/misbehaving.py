"""A chat server on loopback that misbehaves by a script."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cat_lib.models.endpoint import EndpointModel

SECRET = "sk-secret-key-of-the-test"
YES = "<reason>It does.</reason><verdict>yes</verdict>"


def good(text=YES, finish="stop", usage=None, **choice):
    """A whole answer; `choice` replaces parts of its one choice."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12} if usage is None else usage
    choices = [{"index": 0, "finish_reason": finish, "message": message} | choice]
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}


class Misbehaving(BaseHTTPRequestHandler):
    """Does to the n-th request what the server's list `script` says, and the last entry to all further ones.

    An entry is a number (a status), a float (seconds to sleep), a word, (status, body), or a function of the request.
    """

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.seen.append(body | {"key": self.headers["authorization"]})
            act = self.server.script[min(len(self.server.seen), len(self.server.script)) - 1]
            act = act(body) if callable(act) else act
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            self.answer(act)
        finally:
            with self.server.lock:
                self.server.now -= 1

    def answer(self, act):
        if isinstance(act, float):
            time.sleep(act)
        status, content = act if isinstance(act, tuple) else (act if isinstance(act, int) else 200, None)
        content = content or (good() if status == 200 else {"error": {"message": f"no: {SECRET}"}})
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        if act == "no choice":
            body = json.dumps(good() | {"choices": []}).encode()
        if act in ("no JSON", "a page"):
            body = b"<html>gateway</html>"
        if act == "no message":
            body = json.dumps(good(message=None)).encode()
        try:
            self.send_response(status)
            self.send_header("content-type", "text/html" if act == "a page" else "application/json")
            if status == 429:
                self.send_header("retry-after", self.server.retry_after)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:20] if act == "cut off" else body)
        except OSError:
            pass
        self.close_connection = True

    def log_message(self, *_):
        pass


@contextmanager
def misbehaving(*script, **settings):
    """A server on loopback that follows the script, and a model that asks it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving)
    server.script, server.seen, server.lock, server.now, server.most = script, [], threading.Lock(), 0, 0
    server.retry_after = "0"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield EndpointModel("m", f"http://127.0.0.1:{server.server_port}/v1", **settings), server
    finally:
        server.shutdown()
        server.server_close()
