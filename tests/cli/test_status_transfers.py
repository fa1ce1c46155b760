"""Uploads and downloads in `mesh-llm status`."""

from __future__ import annotations

from meshllm.cli.status import _sharing_lines

ID = "ab" * 32


def test_status_lists_downloads_uploads_and_banned_peers() -> None:
    transfer = {"peer": ID, "bytes": 12_345_678, "rate": 2_500_000, "transport": "lane"}
    sharing = {
        "downloads": [transfer | {"name": "box", "what": "Model"}],
        "uploads": [transfer | {"name": "", "what": "model.gguf"}],
        "banned": [{"peer": ID, "name": "liar\x1b[31m", "reason": "chunk 3 failed verification"}],
        "checks": [{"file": "Model\x1b.gguf", "percent": 34}],
    }
    check, download, upload, banned = _sharing_lines(sharing)
    assert check == "checking the digest of Model?.gguf before it is offered: 34 %"
    assert download == "downloading Model from box: 12.3 MB so far, 2.5 MB/s by lane"
    assert upload == "uploading model.gguf to ababababab: 12.3 MB so far, 2.5 MB/s by lane"
    assert "chunk 3" in banned
    assert "\x1b" not in banned
