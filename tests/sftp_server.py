"""SFTP for tests: paramiko's server over one folder, on 127.0.0.1."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING

import paramiko

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USER, PASSWORD = "amperity", "pa:ss@word"


class _Login(paramiko.ServerInterface):
    def check_auth_password(self, username, password):
        right = (username, password) == (USER, PASSWORD)
        return paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED

    def check_channel_request(self, *_):
        return paramiko.OPEN_SUCCEEDED


def _folder(root: Path) -> type[paramiko.SFTPServerInterface]:
    class Folder(paramiko.SFTPServerInterface):
        def _path(self, path):
            return root / path.lstrip("/")

        def list_folder(self, path):
            found = []
            for one in sorted(self._path(path).iterdir()):
                attributes = paramiko.SFTPAttributes.from_stat(one.stat())
                attributes.filename = one.name
                found.append(attributes)
            return found

        def stat(self, path):
            try:
                return paramiko.SFTPAttributes.from_stat(self._path(path).stat())
            except OSError as error:
                return paramiko.SFTPServer.convert_errno(error.errno)

        lstat = stat

        def open(self, path, flags, attributes):  # noqa: ARG002
            handle = paramiko.SFTPHandle(flags)
            try:
                handle.readfile = self._path(path).open("rb")
            except OSError as error:
                return paramiko.SFTPServer.convert_errno(error.errno)
            handle.stat = lambda: paramiko.SFTPAttributes.from_stat(
                os.fstat(handle.readfile.fileno())
            )
            return handle

    return Folder


@contextmanager
def sftp_server(root: Path) -> Iterator[tuple[int, list[paramiko.Transport]]]:
    """Serve a folder; yields the port, and the connections as they come."""
    listener = socket.create_server(("127.0.0.1", 0))
    key, transports = paramiko.ECDSAKey.generate(), []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.add_server_key(key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _folder(root))
            transports.append(transport)
            transport.start_server(server=_Login())

    thread = Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], transports
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for transport in transports:
            transport.close()
