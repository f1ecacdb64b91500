"""Try a user name and password on a Kafka broker, nothing more.

The Kafka clients repeat a refused login until they give up with a timeout. Telling a wrong
password from a broker that is still starting needs the broker's own answer, so this speaks the
few messages of the login itself (SaslHandshake v1, SaslAuthenticate v0; RFC 5802).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import socket
import struct

_SASL_HANDSHAKE = 17
_SASL_AUTHENTICATE = 36
_MAX_ANSWER_BYTES = 1024 * 1024
_HASHES = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}


class LoginError(OSError):
    """The broker's answer makes no sense, or it proves not to know the password itself."""


def can_log_in(server: str, username: str, password: str, mechanism: str, seconds: float) -> bool:
    """Return whether `server` ("host:port") accepts the login; raises OSError if unreachable."""
    host, port = server.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.settimeout(seconds)
        return _Login(connection, _HASHES[mechanism]).run(username, password, mechanism)


class _Login:
    """One login on one connection."""

    def __init__(self, connection: socket.socket, hash_name: str) -> None:
        self._connection = connection
        self._hash = hash_name
        self._correlation = 0

    def run(self, username: str, password: str, mechanism: str) -> bool:
        answer = self._call(_SASL_HANDSHAKE, 1, _string(mechanism))
        if struct.unpack_from(">h", answer)[0] != 0:
            raise LoginError(f"the broker does not offer {mechanism}")
        nonce = secrets.token_hex(16)
        name = username.replace("=", "=3D").replace(",", "=2C")
        first = f"n={name},r={nonce}"
        challenge = self._authenticate(f"n,,{first}")
        if challenge is None:
            return False
        fields = _fields(challenge)
        if not fields.get("r", "").startswith(nonce):
            raise LoginError("the broker answered another login")
        salted = hashlib.pbkdf2_hmac(
            self._hash, password.encode(), base64.b64decode(fields["s"]), int(fields["i"])
        )
        final = f"c=biws,r={fields['r']}"
        signed = f"{first},{challenge},{final}".encode()
        client_key = self._hmac(salted, b"Client Key")
        signature = self._hmac(hashlib.new(self._hash, client_key).digest(), signed)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        verdict = self._authenticate(f"{final},p={base64.b64encode(proof).decode()}")
        if verdict is None:
            return False
        expected = self._hmac(self._hmac(salted, b"Server Key"), signed)
        if not hmac.compare_digest(base64.b64decode(_fields(verdict).get("v", "")), expected):
            raise LoginError("the broker does not know the password either")
        return True

    def _authenticate(self, message: str) -> str | None:
        """Send one SCRAM message; return the broker's, or None when it refuses."""
        data = message.encode()
        answer = self._call(_SASL_AUTHENTICATE, 0, struct.pack(">i", len(data)) + data)
        error, text_length = struct.unpack_from(">hh", answer)
        if error != 0:
            return None
        start = 4 + max(text_length, 0)
        (length,) = struct.unpack_from(">i", answer, start)
        return answer[start + 4 : start + 4 + length].decode()

    def _call(self, api: int, version: int, body: bytes) -> bytes:
        self._correlation += 1
        header = struct.pack(">hhi", api, version, self._correlation) + _string("prime-spark-login")
        request = header + body
        self._connection.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", self._receive(4))
        if not 4 <= size <= _MAX_ANSWER_BYTES:
            raise LoginError("that is not a Kafka broker")
        return self._receive(size)[4:]  # without the correlation id

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self._connection.recv(size - len(data))
            if not chunk:
                raise LoginError("the broker closed the connection")
            data += chunk
        return data

    def _hmac(self, key: bytes, data: bytes) -> bytes:
        return hmac.new(key, data, self._hash).digest()


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">h", len(data)) + data


def _fields(message: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in message.split(",") if "=" in part)
