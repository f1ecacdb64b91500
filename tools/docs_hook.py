"""Called by properdocs: the README is the first page, links to code become code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from properdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s:]+?)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the README as index.md."""
    text = (ROOT / "README.md").read_text()
    files.append(File.generated(config, "index.md", content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Show as code what lies outside docs: the site does not have it."""
    docs = Path(config["docs_dir"])
    folders = [(docs / page.file.src_uri).parent]
    if page.file.src_uri == "index.md":
        folders.append(ROOT)  # where the README has it from

    def link(match: re.Match[str]) -> str:
        targets = [(folder / match[2]).resolve() for folder in folders]
        if not any(path.exists() and not path.is_relative_to(docs) for path in targets):
            return match[0]
        return match[1] if match[1].startswith("`") else f"`{match[1]}`"

    return LINK.sub(link, markdown)
