"""A stand-in of the Hugging Face Hub on this machine: it answers who one is, creates repositories, takes commits."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HubStandIn:
    """What the stand-in was asked, and the files it was given, by repository and path.

    role: of the token that it knows, "good". accepts: whether it takes commits.
    """

    def __init__(self) -> None:
        self.address = ""
        self.role, self.accepts = "write", True
        self.repositories: dict[str, bool] = {}  # whether private
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []


@contextmanager
def hub_stand_in() -> Iterator[HubStandIn]:
    hub = HubStandIn()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, answer: dict[str, Any], status: int = 200) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _may(self) -> bool:
            known = self.headers["Authorization"] == "Bearer good"
            if not known:
                self._answer({"error": "Invalid credentials"}, 401)
            return known

        def do_GET(self) -> None:
            hub.asked.append(f"GET {self.path}")
            parts = self.path.split("/")
            if not self._may():
                return
            if self.path == "/api/whoami-v2":
                access = {"displayName": "t", "role": hub.role}
                self._answer({"type": "user", "name": "ann", "orgs": [], "auth": {"accessToken": access}})
            elif self.path.startswith("/api/models/"):
                name = "/".join(parts[3:5])
                self._answer({"id": name, "private": hub.repositories[name], "siblings": [], "sha": "0" * 40})
            else:
                self._answer({"error": "not here"}, 404)

        def do_POST(self) -> None:
            hub.asked.append(f"POST {self.path}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            parts = self.path.split("/")
            if not self._may():
                return
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization'] or 'ann'}/{asked['name']}"
                url = {"url": f"{hub.address}/{name}"}
                if name in hub.repositories:
                    self._answer({"error": "You already created this model repo", **url}, 409)
                else:
                    hub.repositories[name] = asked.get("visibility") == "private"
                    self._answer(url)
            elif self.path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif "preupload" in parts:
                files = [
                    {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for each in json.loads(body)["files"]
                ]
                self._answer({"files": files})
            elif "commit" in parts and hub.accepts:
                lines = [json.loads(line) for line in body.splitlines()]
                taken = {
                    line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines
                    if line["key"] == "file"
                }
                name = "/".join(parts[3:5])
                hub.files.setdefault(name, {}).update(taken)
                oid = "1" * 40
                self._answer({"success": True, "commitOid": oid, "commitUrl": f"{hub.address}/{name}/commit/{oid}"})
            else:
                self._answer({"error": "The disk quota is used up"}, 403)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
