"""A little Hugging Face Hub on this machine: repositories of given files, and the faults that a real one may have."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" * 6 + "beef"


class HubServer:
    """`repositories`: name -> file name -> content; `asked`: (path, Range or None, Authorization or None) of requests.

    Faults: `false` checksums by file name, `refused` (status, headers) by repository, `stall_after` bytes of a file's
    content, no `ranges`, and `elsewhere`, an address to redirect downloads to.
    """

    def __init__(self):
        self.repositories, self.asked = {}, []
        self.false, self.refused = {}, {}
        self.stall_after, self.ranges, self.elsewhere = None, True, None
        self.stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def downloads(self):
        """The files of which content was asked for, in order."""
        return [path.rsplit("/", 1)[-1] for path, *_ in self.asked if "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_GET(self):
        self.hub.asked.append((self.path, self.headers["Range"], self.headers["Authorization"]))
        listed = re.fullmatch(r"/api/models/([^?]+)(\?.*)?", self.path)
        file = re.fullmatch(rf"/(.+)/resolve/{COMMIT}/(.+)", self.path)
        repository = (listed or file)[1]
        if repository in self.hub.refused:
            status, headers = self.hub.refused[repository]
            self.answer(status, b"", headers)
        elif listed:
            self.answer(200, json.dumps(self.listing(repository)).encode(), {"Content-Type": "application/json"})
        elif self.hub.elsewhere:
            self.answer(302, b"", {"Location": self.hub.elsewhere + self.path})
        else:
            self.send_file(self.hub.repositories[repository][file[2]])

    def listing(self, repository):
        files = []
        for name, content in self.hub.repositories[repository].items():
            entry = {"rfilename": name, "size": len(content)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if not name.endswith(".json"):
                sha256 = self.hub.false.get(name, hashlib.sha256(content).hexdigest())
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            files.append(entry)
        return {"id": repository, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "siblings": files}

    def send_file(self, content):
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if not (begin and self.hub.ranges):
            self.answer(200, content)
            return
        first, last = int(begin[1]), len(content) - 1
        self.answer(206, content[first:], {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def answer(self, status, content, headers=()):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        cut = self.hub.stall_after
        self.wfile.write(content[:cut])
        if cut is not None and cut < len(content) and "/resolve/" in self.path:
            self.wfile.flush()
            self.hub.stopped.wait()  # the rest never comes

    def log_message(self, *_):
        pass
