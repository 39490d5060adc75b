"""An HTTP server that replaces the application of a pod. It returns and prints each request as JSON.

After a protocol upgrade, it sends back the data that it receives. It listens on localhost only.
"""

from __future__ import annotations

import json
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Handles GET and POST on all paths."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Upgrade the connection if requested, otherwise return the request."""
        if self.headers["Upgrade"]:
            self.send_response(HTTPStatus.SWITCHING_PROTOCOLS)
            self.send_header("Upgrade", self.headers["Upgrade"])
            self.send_header("Connection", self.headers["Connection"])
            self.end_headers()
            while chunk := self.rfile.read1(4096):
                self.wfile.write(chunk)
            self.close_connection = True
            return
        request = {
            "method": self.command,
            "path": self.path,
            "body": self.rfile.read(int(self.headers["Content-Length"] or 0)).decode(),
            "headers": [(name.lower(), value) for name, value in self.headers.items()],
            "from": self.client_address[0],
        }
        body = json.dumps(request).encode()
        sys.stdout.buffer.write(body + b"\n")
        sys.stdout.flush()
        self.send_response(HTTPStatus.OK)
        self.send_header("Set-Cookie", "session=secret")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Handle POST like GET."""
        self.do_GET()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
