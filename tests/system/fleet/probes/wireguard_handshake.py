"""Knock at a WireGuard port with a real initiation of a handshake, and with junk.

Arguments: public key of the responder, its address and port, and the private key to knock with: one
that a test made up. Prints {"junk": [answers to junk, in hex or as errors], "handshake": "silent",
"response", or in hex what is no right response to this initiator}.

The standard library alone; see the WireGuard paper, section 5.4. A responder makes a response only
after it has decrypted the initiator's key and found it among its peers.
"""

import base64
import hashlib
import hmac
import json
import os
import socket
import struct
import sys
import time

PRIME = 2**255 - 19
POLY = 2**130 - 5
JUNK = (b"", b"\0", b"\1" + b"\0" * 147, b"\1\0\0\0" + b"A" * 144, b"\4" * 1200)
SECONDS = 1.5


def x25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748."""
    raw = bytearray(scalar)
    raw[0] &= 248
    raw[31] = (raw[31] & 127) | 64
    number, base = int.from_bytes(raw, "little"), int.from_bytes(point, "little") % 2**255
    x2, z2, x3, z3, swap = 1, 0, base, 1, 0
    for position in range(254, -1, -1):
        bit = (number >> position) & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb, aa, bb = d * a, c * b, a * a % PRIME, b * b % PRIME
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % PRIME, base * (da - cb) ** 2 % PRIME
        x2, z2 = aa * bb % PRIME, e * (aa + 121665 * e) % PRIME
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, PRIME - 2, PRIME) % PRIME).to_bytes(32, "little")


def chacha20(key: bytes, counter: int) -> bytes:
    """One block with a nonce of zeros (RFC 8439)."""
    start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *struct.unpack("<8I", key)]
    start += [counter, 0, 0, 0]
    state = list(start)

    def rotate(value: int, by: int) -> int:
        return (value << by | value >> (32 - by)) & 0xFFFFFFFF

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for left, other, by in ((a, d, 16), (c, b, 12), (a, d, 8), (c, b, 7)):
            source = b if left == a else d
            state[left] = (state[left] + state[source]) & 0xFFFFFFFF
            state[other] = rotate(state[other] ^ state[left], by)

    for _ in range(10):
        for column in range(4):
            quarter(column, 4 + column, 8 + column, 12 + column)
        for column in range(4):
            quarter(column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4)
    words = [(a + b) & 0xFFFFFFFF for a, b in zip(state, start, strict=True)]
    return struct.pack("<16I", *words)


def seal(key: bytes, plain: bytes, extra: bytes) -> bytes:
    """ChaCha20-Poly1305 with a nonce of zeros; at most one block of plain text."""
    stream = chacha20(key, 1)
    sealed = bytes(a ^ b for a, b in zip(plain, stream, strict=False))
    once = chacha20(key, 0)
    r = int.from_bytes(once[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    padded = b"".join(part + b"\0" * (-len(part) % 16) for part in (extra, sealed))
    padded += struct.pack("<QQ", len(extra), len(sealed))
    for offset in range(0, len(padded), 16):
        total = (total + int.from_bytes(padded[offset : offset + 16] + b"\1", "little")) * r % POLY
    tag = (total + int.from_bytes(once[16:32], "little")) % 2**128
    return sealed + tag.to_bytes(16, "little")


def blake(*parts: bytes) -> bytes:
    return hashlib.blake2s(b"".join(parts)).digest()


def derive(key: bytes, data: bytes) -> tuple[bytes, bytes]:
    secret = hmac.digest(key, data, "blake2s")
    first = hmac.digest(secret, b"\1", "blake2s")
    return first, hmac.digest(secret, first + b"\2", "blake2s")


def mac1(responder: bytes, message: bytes) -> bytes:
    return hashlib.blake2s(message, key=blake(b"mac1----", responder), digest_size=16).digest()


def initiation(private: bytes, responder: bytes, index: bytes) -> bytes:
    base = (9).to_bytes(32, "little")
    ephemeral = os.urandom(32)
    public, ephemeral_public = x25519(private, base), x25519(ephemeral, base)
    chain = blake(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
    digest = blake(chain, b"WireGuard v1 zx2c4 Jason@zx2c4.com")
    digest = blake(digest, responder)
    chain, _ = derive(chain, ephemeral_public)
    digest = blake(digest, ephemeral_public)
    chain, key = derive(chain, x25519(ephemeral, responder))
    static = seal(key, public, digest)
    digest = blake(digest, static)
    _, key = derive(chain, x25519(private, responder))
    now = time.time_ns()
    stamp = struct.pack(">QI", 2**62 + 10 + now // 10**9, now % 10**9)
    message = b"\1\0\0\0" + index + ephemeral_public + static + seal(key, stamp, digest)
    return message + mac1(responder, message) + b"\0" * 16


def ask(address: str, port: int, body: bytes) -> bytes | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
        stream.settimeout(SECONDS)
        stream.connect((address, port))
        try:
            stream.send(body)
            return stream.recv(2048)
        except TimeoutError:
            return None
        except OSError as error:
            return str(error).encode()


def main() -> None:
    responder, address, port = base64.b64decode(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    private = base64.b64decode(sys.argv[4])
    junk = [answer.hex() for body in JUNK if (answer := ask(address, port, body)) is not None]
    index = os.urandom(4)
    answer = ask(address, port, initiation(private, responder, index))
    if answer is None:
        seen = "silent"
    else:
        own = x25519(private, (9).to_bytes(32, "little"))
        right = answer[:4] == b"\2\0\0\0" and answer[8:12] == index
        # Only who has decrypted the initiator's key can make this.
        right = right and answer[60:76] == mac1(own, answer[:60])
        seen = "response" if right else answer.hex()
    print(json.dumps({"junk": junk, "handshake": seen}))


main()
