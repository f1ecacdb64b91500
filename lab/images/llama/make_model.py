"""Write a tiny Llama model as a GGUF file: random weights, a few words, a chat template.

    python3 make_model.py OUT.gguf

It always writes the same file, and needs nothing but Python. Answers are words of `WORDS` in an
order that means nothing, and never end by themselves: they are as long as the request allows.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3).
"""

from __future__ import annotations

import random
import struct
import sys
from array import array
from pathlib import Path
from typing import Any

NAME = "Prime Spark self-test model"
WORDS = (
    *("self-test", "model", "words", "only", "spark", "prime"),
    *("edge", "cloud", "hello", "ready", "steady", "go"),
)
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "assistant:"
)
CONTEXT, WIDTH, LAYERS, HEADS, HIDDEN = 2048, 64, 2, 4, 128

ALIGNMENT = 32
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # types of metadata values
FORMATS = {UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # types of tokens
TENSOR_F32 = 0

Shape = tuple[int, ...]
Tensors = dict[str, tuple[Shape, array[float]]]


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types: controls, one per byte (any text is input), words."""
    tokens = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    tokens += [(f"<0x{number:02X}>", 0.0, BYTE) for number in range(256)]
    tokens += [(f"\u2581{word}", -1.0 - n, NORMAL) for n, word in enumerate(WORDS)]
    texts, scores, kinds = zip(*tokens, strict=True)
    return list(texts), list(scores), list(kinds)


def weights(tokens: int) -> Tensors:
    """All tensors by name, with their shape (rows, columns)."""
    source = random.Random(20260101)

    def matrix(rows: int, columns: int, scale: float) -> tuple[Shape, array[float]]:
        values = array("f", (source.gauss(0, scale) for _ in range(rows * columns)))
        return (rows, columns), values

    def ones() -> tuple[Shape, array[float]]:
        return (WIDTH,), array("f", [1.0]) * WIDTH

    # The first component is the same for every token; the output uses it to rule out all but words.
    embedding, output = matrix(tokens, WIDTH, 0.3), matrix(tokens, WIDTH, 0.2)
    for token in range(tokens):
        embedding[1][token * WIDTH] = 3.0
        output[1][token * WIDTH] = 0.0 if token >= tokens - len(WORDS) else -20.0
    tensors = {"token_embd": embedding, "output_norm": ones(), "output": output}
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"blk.{layer}.{name}"] = matrix(WIDTH, WIDTH, 0.1)
        tensors[f"blk.{layer}.ffn_gate"] = matrix(HIDDEN, WIDTH, 0.1)
        tensors[f"blk.{layer}.ffn_up"] = matrix(HIDDEN, WIDTH, 0.1)
        tensors[f"blk.{layer}.ffn_down"] = matrix(WIDTH, HIDDEN, 0.1)
        tensors[f"blk.{layer}.attn_norm"] = ones()
        tensors[f"blk.{layer}.ffn_norm"] = ones()
    return {f"{name}.weight": tensor for name, tensor in tensors.items()}


def text(value: str) -> bytes:
    """A string of the format: its length, its bytes."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def scalar(kind: int, value: Any) -> bytes:
    """A value of the format without its type."""
    return text(value) if kind == STRING else struct.pack(FORMATS[kind], value)


def entry(key: str, kind: int, value: Any) -> bytes:
    """One entry of the metadata; a list becomes an array of `kind`."""
    if isinstance(value, list):
        head = struct.pack("<IIQ", ARRAY, kind, len(value))
        return text(key) + head + b"".join(scalar(kind, item) for item in value)
    return text(key) + struct.pack("<I", kind) + scalar(kind, value)


def gguf(metadata: list[tuple[str, int, Any]], tensors: Tensors) -> bytes:
    """The whole file. Dimensions are written with the fastest first; weights are little-endian."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(entry(*item) for item in metadata)
    body = bytearray()
    for name, (shape, values) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", size) for size in reversed(shape))
        head += struct.pack("<IQ", TENSOR_F32, len(body))
        if sys.byteorder == "big":
            values.byteswap()
        body += values.tobytes()
        body += bytes(-len(body) % ALIGNMENT)
    return head + bytes(-len(head) % ALIGNMENT) + bytes(body)


def main() -> None:
    """Write the file that the command line names."""
    tokens, scores, kinds = vocabulary()
    metadata: list[tuple[str, int, Any]] = [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, NAME),
        ("general.description", STRING, "Random weights: proves that requests are answered."),
        ("llama.context_length", UINT32, CONTEXT),
        ("llama.embedding_length", UINT32, WIDTH),
        ("llama.block_count", UINT32, LAYERS),
        ("llama.feed_forward_length", UINT32, HIDDEN),
        ("llama.attention.head_count", UINT32, HEADS),
        ("llama.attention.head_count_kv", UINT32, HEADS),
        ("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        ("llama.rope.dimension_count", UINT32, WIDTH // HEADS),
        ("llama.vocab_size", UINT32, len(tokens)),
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.tokens", STRING, tokens),
        ("tokenizer.ggml.scores", FLOAT32, scores),
        ("tokenizer.ggml.token_type", INT32, kinds),
        ("tokenizer.ggml.unknown_token_id", UINT32, 0),
        ("tokenizer.ggml.bos_token_id", UINT32, 1),
        ("tokenizer.ggml.eos_token_id", UINT32, 2),
        ("tokenizer.ggml.add_bos_token", BOOL, True),
        ("tokenizer.chat_template", STRING, TEMPLATE),
    ]
    Path(sys.argv[1]).write_bytes(gguf(metadata, weights(len(tokens))))


if __name__ == "__main__":
    main()
