"""A hub on loopback that is honest by default and hostile in the ways that a test sets."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "5" * 40
NAME = "evil/base"


class StandIn:
    """A repository with one commit; `headers`, `statuses` and `bodies` replace honest responses by route.

    Routes are "info", "tree" and the names of files. `redirects` lead from a path to another address.
    """

    def __init__(self):
        self.files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights" * 50}
        self.sha = COMMIT
        self.headers, self.bodies, self.statuses, self.redirects, self.tree = {}, {}, {}, {}, None
        self.asked = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                stand_in.answer(self)

            do_GET = do_POST = do_PUT = do_HEAD

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def listing(self):
        """Return the entries of the tree, large files with their SHA-256."""
        entries = []
        for name, content in self.files.items():
            entry = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return entries

    def route(self, path):
        """Return the route of a path and its honest content."""
        if path.startswith("/api/resolve-cache/"):
            return path.rpartition("/")[2], self.files.get(path.rpartition("/")[2])
        if path.startswith("/api/"):
            if "/tree/" in path:
                return "tree", json.dumps(self.listing() if self.tree is None else self.tree).encode()
            return "info", json.dumps({"id": NAME, "sha": self.sha, "siblings": []}).encode()
        name = path.split("/resolve/")[-1].partition("/")[2] if "/resolve/" in path else path.strip("/")
        return name, self.files.get(name)

    def answer(self, request):
        path = request.path.partition("?")[0]
        self.asked.append((request.command, path, request.headers.get("Authorization")))
        if path in self.redirects:
            request.send_response(307)
            request.send_header("Location", self.redirects[path])
            request.send_header("X-Repo-Commit", COMMIT)
            request.send_header("Content-Length", "0")
            return request.end_headers()
        route, content = self.route(path)
        body = self.bodies.get(route, content)
        status = self.statuses.get(route, 200 if body is not None else 404)
        headers = {}
        if "/resolve/" in path or "/resolve-cache/" in path:
            headers = {"ETag": f'"{hashlib.sha1(route.encode()).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if isinstance(body, bytes):
            headers["Content-Length"] = str(len(body))
        headers |= self.headers.get(route, {})
        request.send_response(status)
        for key, value in headers.items():
            for one in value if isinstance(value, list) else [value]:
                request.send_header(key, one)
        request.end_headers()
        if request.command == "HEAD" or body is None:
            return None
        try:
            for piece in [body] if isinstance(body, bytes) else body():
                request.wfile.write(piece)
        except OSError:
            pass  # the client has heard enough
        return None
