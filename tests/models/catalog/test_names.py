"""Parsing of quantizations, parts of split files and references to the hub."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshllm.errors import UsageError
from meshllm.models.catalog.names import (
    MAX_MODEL_NAME,
    GgufPart,
    hub_reference,
    model_name,
    part_of,
    quantization,
    quantization_in,
)
from meshllm.models.hub.manifest import HubReference

MIRROR = "https://mirror.example:8443/hf"


@pytest.mark.parametrize(
    ("text", "usual"),
    [
        ("q4_k_m", "Q4_K_M"),
        ("Q4-K-M", "Q4_K_M"),
        ("iq4_xs", "IQ4_XS"),
        ("IQ2_XXS", "IQ2_XXS"),
        ("iq4_nl", "IQ4_NL"),
        ("ud-q4_k_xl", "UD-Q4_K_XL"),
        ("UD_IQ1_M", "UD-IQ1_M"),
        ("Q8_0", "Q8_0"),
        ("q6_k", "Q6_K"),
        ("Q4_0_8_8", "Q4_0_8_8"),
        ("bf16", "BF16"),
        ("f16", "F16"),
        ("fp16", "FP16"),
        ("TQ1_0", "TQ1_0"),
        ("mxfp4", "MXFP4"),
        ("MXFP4_MOE", "MXFP4_MOE"),
    ],
)
def test_quantization_is_normalized(text: str, usual: str) -> None:
    assert quantization(text) == usual
    assert quantization_in(f"model-{text}-more") == (usual, "model- -more")


@pytest.mark.parametrize("text", ["", "Q", "Q9_0", "4bit", "Q4_K_M.gguf", "Q4_K_M/../x", "latest", "int8", "Q4 K M"])
def test_quantization_rejects_other_text(text: str) -> None:
    with pytest.raises(UsageError, match="not a quantization"):
        quantization(text)


def test_quantization_in_a_name_without_one() -> None:
    assert quantization_in("Qwen3-8B") == ("", "Qwen3-8B")
    assert quantization_in("iq40f160") == ("", "iq40f160")


def test_part_of_parses_parts() -> None:
    assert part_of("m-00002-of-00003.gguf") == GgufPart(2, 3, "m-00001-of-00003.gguf")
    assert part_of("m-00002-of-00003.GGUF") == GgufPart(2, 3, "m-00001-of-00003.GGUF")
    assert part_of("m.gguf") is None
    assert model_name("m-00001-of-00003.gguf") == model_name("m.gguf") == model_name("m.GGUF") == "m"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/repo", HubReference("repo", "org/repo")),
        ("org/Qwen3-8B-GGUF", HubReference("Qwen3-8B", "org/Qwen3-8B-GGUF")),
        ("org/Qwen3-8B-GGUF:q8_0", HubReference("Qwen3-8B-Q8_0", "org/Qwen3-8B-GGUF", "", "Q8_0")),
        ("org/repo_gguf", HubReference("repo", "org/repo_gguf")),
        ("org/GGUF", HubReference("GGUF", "org/GGUF")),
        ("org/repo@v1.0", HubReference("repo", "org/repo", revision="v1.0")),
        ("org/repo@v1.0:Q4_K_M", HubReference("repo-Q4_K_M", "org/repo", "", "Q4_K_M", "v1.0")),
        ("org/repo/file.gguf", HubReference("file", "org/repo", "file.gguf")),
        ("org/repo:file.gguf", HubReference("file", "org/repo", "file.gguf")),
        ("org/repo@abc/Q4/file.GGUF", HubReference("file", "org/repo", "Q4/file.GGUF", revision="abc")),
        ("org/repo/x-00001-of-00004.gguf", HubReference("x", "org/repo", "x-00001-of-00004.gguf")),
        ("hf://org/repo/sub/file.gguf", HubReference("file", "org/repo", "sub/file.gguf")),
        ("HuggingFace://org/repo:Q4_K_M", HubReference("repo-Q4_K_M", "org/repo", "", "Q4_K_M")),
        ("hf.co/org/repo:IQ4-XS", HubReference("repo-IQ4_XS", "org/repo", "", "IQ4_XS")),
        ("huggingface.co/org/repo", HubReference("repo", "org/repo")),
        ("https://huggingface.co/org/repo", HubReference("repo", "org/repo")),
        ("https://huggingface.co/org/repo/", HubReference("repo", "org/repo")),
        ("http://www.huggingface.co/org/repo?x=y#z", HubReference("repo", "org/repo")),
        ("https://huggingface.co/org/repo/tree/main", HubReference("repo", "org/repo")),
        ("https://huggingface.co/org/repo/tree/v2", HubReference("repo", "org/repo", revision="v2")),
        ("https://hf.co/org/repo/tree/main/UD-Q4_K_XL", HubReference("repo-UD-Q4_K_XL", "org/repo", "", "UD-Q4_K_XL")),
        ("https://huggingface.co/org/repo/resolve/main/a%20b.gguf", HubReference("a b", "org/repo", "a b.gguf")),
        (
            "https://huggingface.co/org/repo/blob/refs%2Fpr%2F7/sub/file.gguf?download=true",
            HubReference("file", "org/repo", "sub/file.gguf", revision="refs/pr/7"),
        ),
        ("https://huggingface.co/org/repo?show_file_info=f.gguf", HubReference("f", "org/repo", "f.gguf")),
        (f"{MIRROR}/org/repo/resolve/main/f.gguf", HubReference("f", "org/repo", "f.gguf")),
        (f"{MIRROR}/org/repo", HubReference("repo", "org/repo")),
    ],
)
def test_hub_reference_forms(text: str, expected: HubReference) -> None:
    assert hub_reference(text, MIRROR) == expected


@pytest.mark.parametrize("text", ["Qwen3-8B", "qwen3:8b", "file.gguf", "/org/repo", "./org/repo", "~/org/repo", ""])
def test_hub_reference_none_for_other_forms(text: str) -> None:
    assert hub_reference(text) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://example.com/org/repo", "Models are not downloaded from"),
        ("https://huggingface.co.example.com/org/repo", "Models are not downloaded from"),
        ("https://mirror.example:8443/other/org/repo", "Models are not downloaded from"),
        ("https://mirror.example/hf/org/repo", "Models are not downloaded from"),  # another port
        ("ftp://huggingface.co/org/repo", "Models are not downloaded from"),
        ("file:///etc/passwd", "Models are not downloaded from"),
        ("http://[x/org/repo", "Models are not downloaded from"),
        ("https://mirror.example:x/hf/org/repo", "Models are not downloaded from"),
        ("https://huggingface.co/", "names no model"),
        ("https://huggingface.co/gpt2", "names no model"),
        ("hf://", "names no model"),
        ("org//repo", "names no model"),
        ("https://huggingface.co/datasets/org/repo", "no models under datasets"),
        ("https://huggingface.co/spaces/org/repo", "no models under spaces"),
        ("https://huggingface.co/org/repo/resolve/main/model.safetensors", "is not a GGUF file"),
        ("https://huggingface.co/org/repo/tree/main/folder", "is not a GGUF file"),
        ("https://huggingface.co/org/repo/resolve/main/..%2Fx.gguf", "cannot be the path"),
        ("https://huggingface.co/org/repo/resolve/..%2Fx/x.gguf", "cannot be a revision"),
        ("org/repo/../x.gguf", "cannot be the path"),
        ("org/repo/.hidden.gguf", "cannot be the path"),
        ("org/repo/a..b.gguf", "cannot be the path"),
        ("org/repo/C:\\x.gguf", "cannot be the path"),
        ("org/repo/" + "x/" * 9 + "x.gguf", "cannot be the path"),
        ("org/..", "is not a valid repository"),
        ("org/a..b", "is not a valid repository"),
        ("or g/repo", "is not a valid repository"),
        ("org/file.gguf", "without a repository"),
        ("org/repo@..", "cannot be a revision"),
        ("org/repo@-x", "cannot be a revision"),
        ("org/repo:latest", "not a quantization"),
        ("org/repo:Q4_K_M/file.gguf", "names a file twice"),
        ("org/repo/mmproj-F16.gguf", "only goes with a model"),
        ("org/repo/x-BF16-mmproj.gguf", "only goes with a model"),
        ("org/repo/x-00000-of-00002.gguf", "is part 0 of 2"),
        ("org/repo/" + "x" * 150 + ".gguf", "too long"),
    ],
)
def test_hub_reference_rejects_invalid_forms(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refusal:
        hub_reference(text, MIRROR)
    assert refusal.value.advice


def test_hub_reference_of_a_later_part_names_the_first() -> None:
    with pytest.raises(UsageError, match=r"part 2 of 3\. Name sub/x-00001-of-00003\.gguf instead"):
        hub_reference("org/repo/sub/x-00002-of-00003.gguf")


def test_hub_reference_ignores_an_invalid_mirror() -> None:
    for endpoint in ("", "nonsense", "http://[", "https://huggingface.co"):
        assert hub_reference("https://hf.co/org/repo", endpoint) == HubReference("repo", "org/repo")
        with pytest.raises(UsageError):
            hub_reference("https://example.com/org/repo", endpoint)


PIECES = st.sampled_from(
    ["https://", "hf://", "huggingface.co", "hf.co", "/", "org", "repo-GGUF", ":", "Q4_K_M", "@", "..", ".", "%2f",
     "%2e", "resolve", "tree", "main", "x.gguf", "x-00001-of-00002.gguf", "mmproj", "?show_file_info=", "\\", " ", "\0",
     "é", "["]
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(
    text=st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=12).map("".join)),
    endpoint=st.sampled_from(["", MIRROR, "http://[", "x"]),
)
def test_hub_reference_never_leaves_the_model_folder(text: str, endpoint: str) -> None:
    advice, reference = "", None
    try:
        reference = hub_reference(text, endpoint)
    except UsageError as error:
        advice = error.advice or "none"
    assert advice != "none"
    if reference is None:
        return
    assert reference == hub_reference(text, endpoint)
    assert 0 < len(reference.name) <= MAX_MODEL_NAME
    for part in (reference.name, reference.repository, reference.path, reference.quantization, reference.revision):
        assert part.isprintable()
        assert ".." not in part
        assert "\\" not in part
        assert not part.startswith(("/", "."))
    assert "/" not in reference.name
    assert reference.repository.count("/") == 1
    assert reference.path == "" or reference.path.casefold().endswith(".gguf")
