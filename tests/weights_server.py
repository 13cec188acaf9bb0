"""A file server on loopback whose every answer a test decides."""

import hashlib
import re
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """What the server does with one request.

    ``cut`` closes the connection after that many bytes of the body; ``gate`` is waited for in their stead.
    """

    body: bytes = b""
    status: int = 200
    etag: str | None = '"one"'
    last_modified: str | None = None
    ranges: bool = True
    obey_if_range: bool = True
    states_length: bool = True
    content_type: str = "application/octet-stream"
    cut: int | None = None
    gate: threading.Event | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class LocalServer:
    """HTTP at ``address``, in threads, until it is closed: ``_answer`` of a class is given what asks by ``verbs``."""

    verbs = ("GET",)
    protocol = "HTTP/1.0"

    def __init__(self):
        methods = dict.fromkeys((f"do_{verb}" for verb in self.verbs), lambda handler: self._answer(handler))
        methods |= {"log_message": lambda *_: None, "protocol_version": self.protocol}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (BaseHTTPRequestHandler,), methods))
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class FileServer(LocalServer):
    """Answers by path, in order; the last one repeats. ``requests`` are (path, headers) as they came in."""

    def __init__(self):
        self.answers: dict[str, list[Answer]] = defaultdict(list)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.arrived = threading.Semaphore(0)
        super().__init__()

    def serve(self, path, *answers):
        """Set the answers of a path, and return its URL."""
        self.answers[path] = list(answers)
        return self.address + path

    def ranges(self):
        """The Range header of every request."""
        return [headers.get("Range") for _, headers in self.requests]

    def _answer(self, handler):
        self.requests.append((handler.path, dict(handler.headers.items())))
        self.arrived.release()
        queue = self.answers[handler.path]
        answer = (queue.pop(0) if len(queue) > 1 else queue[0]) if queue else Answer(status=404)
        status, body = answer.status, answer.body
        headers = {"Content-Type": answer.content_type, **answer.headers}
        headers |= {name: value for name, value in self._version(answer).items() if value is not None}
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if status == 200 and wanted and answer.ranges and self._same_version(handler, answer):
            start = int(wanted[1])
            status = 206 if start < len(body) else 416
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body = body[start:]
        if answer.states_length:
            headers["Content-Length"] = str(len(body))
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[: answer.cut])
        handler.wfile.flush()
        if answer.gate is not None:
            answer.gate.wait(20)
            handler.wfile.write(body[answer.cut :] if answer.cut is not None else b"")
        handler.close_connection = True

    @staticmethod
    def _version(answer):
        return {"ETag": answer.etag, "Last-Modified": answer.last_modified}

    @staticmethod
    def _same_version(handler, answer):
        condition = handler.headers.get("If-Range")
        return condition is None or not answer.obey_if_range or condition in (answer.etag, answer.last_modified)


def content(size=5000, seed=0):
    """Bytes that do not repeat, the same on every machine; the first is never ``<``."""
    blocks = [hashlib.sha256(f"{seed}/{i}".encode()).digest() for i in range(size // 32 + 1)]
    return (b"\x80" + b"".join(blocks))[:size]


def sha256(data):
    return hashlib.sha256(data).hexdigest()
