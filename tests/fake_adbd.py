"""The device side of adb's protocol, over TCP, as far as the adb runner uses it: shell (version 2) and file transfer.

After the protocol's own description: packages/modules/adb/{protocol.txt,SYNC.TXT,shell_protocol.h} of Android's source.
"""

from __future__ import annotations

import queue
import socket
import struct
import subprocess
import threading
from pathlib import Path

VERSION, LARGEST = 0x01000001, 256 * 1024  # from this version on, nobody looks at checksums
BANNER = b"device::ro.product.name=board;ro.product.model=board;ro.product.device=board;features=shell_v2,cmd"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


class FakeAdbd:
    """A device on a loopback port. `shell` runs commands; `places` says where paths of the device lie here."""

    def __init__(self, shell: Path, places: dict[str, Path]) -> None:
        self.shell, self.places = shell, places
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.append(connection)
            threading.Thread(target=Transport(connection, self).serve, daemon=True).start()

    def cut(self) -> None:
        """Pull the cable."""
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._connections.clear()

    def close(self) -> None:
        self._server.close()
        self.cut()

    def local(self, path: str) -> Path:
        for prefix, folder in self.places.items():
            if path.startswith(prefix + "/"):
                return folder / path[len(prefix) + 1 :]
        raise FileNotFoundError(path)


class Transport:
    """One connection: packets of many streams, each with numbers of its own on both sides."""

    def __init__(self, connection: socket.socket, device: FakeAdbd) -> None:
        self.connection, self.device = connection, device
        self.streams: dict[int, Stream] = {}
        self._sending = threading.Lock()

    def serve(self) -> None:
        number = 0
        try:
            while True:
                command, first, second, size, _, _ = struct.unpack("<4s5I", self._exact(24))
                data = self._exact(size)
                if command == b"CNXN":
                    self.send(b"CNXN", VERSION, LARGEST, BANNER)
                elif command == b"OPEN":
                    number += 1
                    stream = self.streams[number] = Stream(self, number, first)
                    stream.open(data.rstrip(b"\0").decode())
                elif stream := self.streams.get(second):
                    stream.take(command, data)
        except OSError:
            pass
        finally:
            self.connection.close()
            for stream in list(self.streams.values()):
                stream.take(b"CLSE", b"")

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        magic = struct.unpack("<I", command)[0] ^ 0xFFFFFFFF
        with self._sending:
            self.connection.sendall(struct.pack("<4s5I", command, first, second, len(data), 0, magic) + data)

    def _exact(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            if not part:
                raise ConnectionResetError
            data += part
        return bytes(data)


class Stream:
    """One service that the other side opened. One packet is under way in each direction until it is acknowledged."""

    def __init__(self, transport: Transport, ours: int, theirs: int) -> None:
        self._transport, self._ours, self._theirs = transport, ours, theirs
        self._ready = threading.Semaphore(1)
        self._came: queue.Queue[bytes | None] = queue.Queue()
        self._rest = bytearray()
        self._over = False

    def open(self, service: str) -> None:
        name, _, argument = service.partition(":")
        serve = {"sync": self._sync, "shell": self._shell}.get(name.split(",")[0])
        if serve is None:
            self._transport.send(b"CLSE", 0, self._theirs)
            return
        self._transport.send(b"OKAY", self._ours, self._theirs)
        threading.Thread(target=self._served, args=(serve, argument), daemon=True).start()

    def _served(self, serve: object, argument: str) -> None:
        try:
            serve(argument)  # type: ignore[operator]
            self._transport.send(b"CLSE", self._ours, self._theirs)
        except OSError:
            pass

    def take(self, command: bytes, data: bytes) -> None:
        if command == b"OKAY":
            self._ready.release()
        elif command == b"WRTE":
            self._came.put(data)
            self._transport.send(b"OKAY", self._ours, self._theirs)
        elif command == b"CLSE":
            self._over = True
            self._came.put(None)
            self._ready.release()

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), LARGEST):
            self._ready.acquire()
            if self._over:
                raise ConnectionResetError
            self._transport.send(b"WRTE", self._ours, self._theirs, data[start : start + LARGEST])

    def _exact(self, size: int) -> bytes:
        while len(self._rest) < size:
            part = self._came.get()
            if part is None:
                raise ConnectionResetError
            self._rest += part
        data = bytes(self._rest[:size])
        del self._rest[:size]
        return data

    def _sync(self, _: str) -> None:
        while True:
            kind, size = struct.unpack("<4sI", self._exact(8))
            path = self._exact(size).decode()
            if kind == b"QUIT":
                return
            if kind == b"STAT":
                try:
                    found = self._transport.device.local(path).stat()
                    self.write(b"STAT" + struct.pack("<3I", found.st_mode, found.st_size, int(found.st_mtime)))
                except OSError:
                    self.write(b"STAT" + struct.pack("<3I", 0, 0, 0))
            elif kind == b"SEND":
                target = self._transport.device.local(path.rpartition(",")[0])
                with target.open("wb") as handle:
                    while (head := struct.unpack("<4sI", self._exact(8)))[0] == b"DATA":
                        handle.write(self._exact(head[1]))
                self.write(b"OKAY" + struct.pack("<I", 0))
            else:
                message = f"no {kind.decode()} here".encode()
                self.write(b"FAIL" + struct.pack("<I", len(message)) + message)

    def _shell(self, command: str) -> None:
        process = subprocess.Popen(
            [self._transport.device.shell, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        feeder = threading.Thread(target=self._feed, args=(process,), daemon=True)
        feeder.start()
        readers = [threading.Thread(target=self._copy, args=(kind, process), daemon=True) for kind in (STDOUT, STDERR)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        code = process.wait()
        self.write(struct.pack("<BIB", EXIT, 1, code if code >= 0 else 128 - code))

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        try:
            while True:
                kind, size = struct.unpack("<BI", self._exact(5))
                data = self._exact(size)
                if kind == STDIN:
                    process.stdin.write(data)
                    process.stdin.flush()
                elif kind == CLOSE_STDIN:
                    break
        except OSError:
            pass
        try:
            process.stdin.close()
        except OSError:
            pass

    def _copy(self, kind: int, process: subprocess.Popen[bytes]) -> None:
        source = process.stdout if kind == STDOUT else process.stderr
        assert source is not None
        try:
            while data := source.read1(1 << 15):  # type: ignore[attr-defined]
                self.write(struct.pack("<BI", kind, len(data)) + data)
        except OSError:
            while source.read1(1 << 15):  # type: ignore[attr-defined]  # nobody listens; the program must not wait for them
                pass
