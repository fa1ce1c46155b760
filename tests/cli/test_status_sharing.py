"""What `mesh-llm status` says of model files on their way."""

from __future__ import annotations

from meshllm.cli.status import _sharing_lines

ID = "ab" * 32


def test_what_is_taken_given_and_refused_is_told_in_words() -> None:
    moving = {"peer": ID, "bytes": 12_345_678, "rate": 2_500_000, "transport": "lane"}
    told = {
        "downloads": [moving | {"name": "box", "what": "Model"}],
        "uploads": [moving | {"name": "", "what": "model.gguf"}],
        "banned": [{"peer": ID, "name": "liar\x1b[31m", "reason": "chunk 3 is not what it said that it would be"}],
    }
    taking, giving, banned = _sharing_lines(told)
    assert taking == "downloading Model from box: 12.3 MB so far, 2.5 MB/s by lane"
    assert giving == "uploading model.gguf to ababababab: 12.3 MB so far, 2.5 MB/s by lane"
    assert "chunk 3" in banned
    assert "\x1b" not in banned
