"""A loopback server that speaks as much of the Hugging Face Hub's protocol as one upload and its downloads need."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

MAX_REQUESTS = 100  # a client that goes round in circles is refused


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, str]] = {}  # repository -> branch -> commit
        self.commits: dict[str, dict[str, bytes]] = {}  # commit -> path -> content
        self.large: dict[str, bytes] = {}  # sha256 -> content
        self.messages: list[str] = []
        self.requests: list[str] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self):
        hub, path = self.server, unquote(urlsplit(self.path).path).strip("/").split("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
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
            hub.repos.setdefault(repo, {"main": self.commit({})})
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
                sha = branches[revision] = self.commit(files)
                url = f"{hub.url}/{'/'.join(path[2:4])}/commit/{sha}"
                return self.reply(200, {"success": True, "commitOid": sha, "commitUrl": url})
        if len(path) >= 5 and path[2] == "resolve":
            branches = hub.repos.get("/".join(path[:2]))
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

    def commit(self, files: dict[str, bytes]) -> str:
        sha = f"{len(self.server.commits) + 1:040x}"
        self.server.commits[sha] = files
        return sha

    def reply(self, status: int, content, headers: dict[str, str] | None = None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = (
            "application/vnd.git-lfs+json"
            if isinstance(content, dict)
            else "application/octet-stream"
        )
        self.send_response(status)
        for key, value in {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def running_hub():
    """A `Hub` that answers on 127.0.0.1 until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
