"""Replace files and links in one step: a crash leaves the old one or the new one, never a part."""

from __future__ import annotations

import os
import tempfile


def replace_file(
    path: str | os.PathLike[str],
    content: bytes | str,
    mode: int = 0o600,
    owner: tuple[int, int] | None = None,
    *,
    durable: bool = True,
) -> None:
    """Replace a file; at no moment does somebody read it who may not in the end.

    It belongs to this process, or to the ids of ``owner``. Without ``durable`` it is for nothing
    that has to outlive a power cut.
    """
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".prime-spark-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            if owner:
                os.fchown(stream.fileno(), *owner)
            os.fchmod(stream.fileno(), mode)
            if durable:
                os.fsync(stream.fileno())
        os.rename(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def replace_link(path: str | os.PathLike[str], target: str) -> None:
    """Point a symbolic link elsewhere."""
    temporary = f"{path}.prime-spark-new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(target, temporary)
    os.rename(temporary, path)
