"""A loopback server that speaks as much of the Hugging Face Hub's protocol as one upload and its downloads need,
and that can fail as a network does."""

import base64
import contextlib
import hashlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

MAX_REQUESTS = 100  # a client that goes round in circles is refused


def environment(url: str, home: Path, **more: str) -> dict[str, str]:
    """The environment variables of a process that takes the server at `url` for the Hub."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    env |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    return env | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | more


class Hub(ThreadingHTTPServer):
    """Repositories in memory.

    `faults` maps (method, end of the path) to what goes wrong there: an HTTP status, "gated", "reset", "stall" (no
    answer), "drip" (an answer that never ends), "half" (the body stalls), "cut" (the body ends early), "loop" (of
    redirects) or "portal" (the page of somebody else).
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, str]] = {}  # repository -> branch -> commit
        self.commits: dict[str, dict[str, bytes]] = {}  # commit -> path -> content
        self.large: dict[str, bytes] = {}  # sha256 -> content
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.tokens: dict[str, str] = {}  # private repository -> the token that opens it
        self.faults: dict[tuple[str, str], str | int] = {}
        self.before: Callable[[str], None] = lambda request: None
        self.released = threading.Event()  # ends what stalls

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(str(len(self.commits)).encode()).hexdigest()
        self.commits[sha] = files
        return sha

    def put(self, repo: str, folder: Path, branch: str = "main") -> str:
        """Makes the files of a folder the newest commit of a branch."""
        files = {p.name: p.read_bytes() for p in Path(folder).iterdir()}
        sha = self.repos.setdefault(repo, {})[branch] = self.commit(files)
        return sha

    def handle_error(self, request, client_address):  # of a connection that was reset
        pass

    @contextlib.contextmanager
    def refusing(self):
        """Refuses connections until the block ends."""
        self.shutdown()
        self.socket.close()
        try:
            yield
        finally:
            self.socket = socket.socket(self.address_family, self.socket_type)
            self.server_bind()
            self.server_activate()
            threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self):
        hub, parts = self.server, urlsplit(self.path).path.strip("/").split("/")
        path = [unquote(part) for part in parts]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.before(f"{self.command} {self.path}")
        hub.requests.append(f"{self.command} {self.path}")
        if len(hub.requests) > MAX_REQUESTS:
            return self.reply(403, {"error": "too many requests for a test"})
        if path[0] == "lfs":
            hub.large[path[1]] = body
            return self.reply(200, {})
        if path[-3:] == ["lfs", "objects", "batch"]:
            wanted = json.loads(body)["objects"]
            upload = [
                {**o, "actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}} for o in wanted
            ]
            return self.reply(200, {"transfer": "basic", "objects": upload})
        if path == ["api", "repos", "create"]:
            values = json.loads(body)
            repo = f"{values['organization']}/{values['name']}"
            status = 409 if repo in hub.repos else 200
            hub.repos.setdefault(repo, {"main": hub.commit({})})
            return self.reply(status, {"url": f"{hub.url}/{repo}"})
        if path == ["api", "validate-yaml"]:
            return self.reply(200, {"errors": [], "warnings": []})
        if path[:2] == ["api", "models"] and len(path) == 6 and "/".join(path[2:4]) in hub.repos:
            branches, (action, revision) = hub.repos["/".join(path[2:4])], path[4:]
            if action == "branch":
                status = 409 if revision in branches else 200
                branches.setdefault(revision, branches["main"])
                return self.reply(status, {})
            if action == "preupload":
                large = lambda name: "lfs" if name.endswith(".safetensors") else "regular"
                files = [f["path"] for f in json.loads(body)["files"]]
                modes = [{"path": f, "uploadMode": large(f), "shouldIgnore": False} for f in files]
                return self.reply(200, {"files": modes})
            if action == "commit":
                files = dict(hub.commits[branches[revision]])
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "header":
                        hub.messages.append(value["summary"])
                    elif line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.large[value["oid"]]
                sha = branches[revision] = hub.commit(files)
                url = f"{hub.url}/{'/'.join(path[2:4])}/commit/{sha}"
                return self.reply(200, {"success": True, "commitOid": sha, "commitUrl": url})
        if len(path) >= 5 and path[2] == "resolve":
            branches = hub.repos.get("/".join(path[:2]))
            token = hub.tokens.get("/".join(path[:2]))
            if token and self.headers.get("Authorization") != f"Bearer {token}":
                return self.reply(401, {"error": "Invalid username or password."})
            if branches is None:
                return self.reply(
                    404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
                )
            sha = branches.get(path[3], path[3])
            if sha not in hub.commits:
                return self.reply(
                    404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
                )
            content = hub.commits[sha].get("/".join(path[4:]))
            if content is None:
                headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
                return self.reply(404, {"error": "Entry not found"}, headers)
            etag = hashlib.sha256(content).hexdigest()
            return self.reply(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": sha})
        return self.reply(404, {"error": f"{self.path} is not part of this test's Hub"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def reply(self, status: int, content, headers: dict[str, str] | None = None):
        fault = self.fault()
        if fault == "stall":
            self.server.released.wait(60)
        if fault in ("stall", "reset"):
            return self.reset()
        if fault == "drip":
            return self.drip()
        if fault == "loop":
            status, headers = 302, {"Location": self.path}
        elif fault == "portal":
            status, content, headers = 200, b"<html>Welcome to our hotel</html>", {}
        elif fault == "gated":
            status, content = 403, {"error": "Ask for access"}
            headers = {"X-Error-Code": "GatedRepo"}
        elif isinstance(fault, int):
            status, content, headers = fault, {"error": "no"}, {"Retry-After": "3600"}
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        lfs = isinstance(content, dict)
        kind = "application/vnd.git-lfs+json" if lfs else "application/octet-stream"
        self.send_response(status)
        own = {"Content-Type": kind, "Content-Length": str(len(data)), "Connection": "close"}
        for key, value in {**own, **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if fault in ("half", "cut") else data)
        if fault == "half":
            self.wfile.flush()
            self.server.released.wait(60)

    def fault(self) -> str | int | None:
        path = urlsplit(self.path).path
        fits = lambda method, end: method in ("*", self.command) and path.endswith(end)
        return next((f for key, f in self.server.faults.items() if fits(*key)), None)

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.wfile.close()

    def drip(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            while not self.server.released.wait(0.1):
                self.wfile.write(b"a")

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def running_hub():
    """A `Hub` that answers on 127.0.0.1 until the block ends."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.released.set()
        hub.shutdown()
        hub.server_close()
