"""Serve this bundle's page on this machine: `python serve.py`, then open the address it prints. Python alone is enough.

The page must come over HTTP with two headers that isolate it from other origins: without them a browser gives
WebAssembly one thread and coarse clocks. Any other server will do if it sends them too (ISOLATION, below).
"""

import argparse
import http.server
import sys
import urllib.parse
from pathlib import Path

HERE = Path(__file__).resolve().parent
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of `places`, [(path prefix, folder)]; of several that fit, the first that has the file."""

    protocol_version = "HTTP/1.1"
    places = (("/", HERE),)

    def translate_path(self, path):
        path = urllib.parse.urlsplit(path).path
        path += "index.html" if path.endswith("/") else ""
        for prefix, folder in self.places:
            if path.startswith(prefix):
                self.directory = str(folder)
                found = super().translate_path("/" + path[len(prefix) :])  # drops every ".."
                if Path(found).is_file():
                    return found
        return str(HERE / "no such file")

    def guess_type(self, path):
        return TYPES.get(Path(path).suffix) or super().guess_type(path)

    def end_headers(self):
        for name, value in ISOLATION.items():
            self.send_header(name, value)
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a page that was closed while it loaded
            super().handle_error(request, client_address)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    args = parser.parse_args()
    try:
        server = Server(("127.0.0.1", args.port), Handler)
    except (OSError, OverflowError) as error:
        sys.exit(f"serve.py: port {args.port} cannot be used ({error}); try --port 0")
    print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C stops it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
