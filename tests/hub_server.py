"""The part of the Hugging Face hub that ``huggingface_hub`` asks, on loopback: repositories in memory.

Files arrive within the commit, as small ones do on the hub itself; its storage of large ones, Xet, is not imitated.
"""

import base64
import hashlib
import json
import re
from urllib.parse import unquote

from weights_server import LocalServer

TOKEN = "hf_test"
COMMIT = "0" * 39 + "1"


class Hub(LocalServer):
    """``repositories`` are {name: {path: bytes}}; writing needs :data:`TOKEN`."""

    verbs = ("HEAD", "GET", "POST")
    protocol = "HTTP/1.1"

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        super().__init__()

    def _answer(self, handler):
        length = int(handler.headers.get("Content-Length") or 0)
        status, headers, body = self._route(
            handler.command, unquote(handler.path.partition("?")[0]), handler.rfile.read(length), handler.headers
        )
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        # Said, and not only done: a client that keeps the connection would meet its end on its next request. Kept open,
        # it would be answered when the server is gone.
        handler.send_header("Connection", "close")
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    def _route(self, verb, path, body, headers):
        if verb == "POST" and path != "/api/validate-yaml" and headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {}, {"error": "Invalid username or password."}
        if path == "/api/validate-yaml":
            return 200, {}, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.repositories.setdefault(name, {})
            self.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
            return 200, {}, {"url": f"{self.address}/{name}", "name": name, "id": name}
        if match := re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)/?(.*)", path):
            name, what = match.groups()
            if name not in self.repositories:
                return 404, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"}
            return self._within(self.repositories[name], name, what, body)
        return 404, {}, {"error": path}

    def _within(self, files, name, what, body):
        if what.startswith("preupload/"):
            asked = json.loads(body)["files"]
            modes = [{"path": each["path"], "shouldIgnore": False, "uploadMode": "regular"} for each in asked]
            return 200, {}, {"files": modes}
        if what.startswith("commit/"):
            for line in body.splitlines():
                part = json.loads(line)
                value = part["value"]
                if part["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
            address = f"{self.address}/{name}/commit/{COMMIT}"
            return 200, {}, {"success": True, "commitOid": COMMIT, "commitUrl": address}
        if match := re.fullmatch(r"resolve/([^/]+)/(.+)", what):
            path = match[2]
            if path not in files:
                return 404, {"X-Error-Code": "EntryNotFound"}, {"error": "Entry not found"}
            etag = hashlib.sha256(files[path]).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, files[path]
        if what and not what.startswith(("revision/main", f"revision/{COMMIT}")):
            if what.startswith("revision/"):
                return 404, {"X-Error-Code": "RevisionNotFound"}, {"error": "Invalid rev id"}
            if what.startswith("tree/"):
                tree = [
                    {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                    for p, d in files.items()
                ]
                return 200, {"Content-Type": "application/json"}, tree
            return 404, {}, {"error": what}
        siblings = [{"rfilename": path} for path in files]
        return 200, {}, {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
