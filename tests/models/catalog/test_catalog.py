"""The shipped catalogue, and errors in a catalogue file."""

from __future__ import annotations

import re

import pytest

from meshllm.core.snapshot import Purpose
from meshllm.errors import InternalError
from meshllm.models.catalog.catalog import load, parse
from meshllm.models.catalog.entry import CacheLayers, CatalogEntry
from meshllm.models.hub.manifest import HubReference, HubSource, Manifest, ModelFile, PackageSource

GB = 10**9
WITH_FILE = """
[[model]]
name = "M"
architecture = "llama"
parameters = 100
quantization = "Q4_0"
context_length = 1
license = "MIT"
cache = [{{ layers = 1, heads = 1, key = 1, value = 1 }}]
[[model.file]]
name = "m.gguf"
size = 60
sha256 = "{sha}"
[[model.file.source]]
kind = "hub"
repository = "a/b"
revision = "{revision}"
path = "m.gguf"
""".format(sha="a" * 64, revision="b" * 40)
PINNED = """
[[model]]
name = "Big"
architecture = "qwen3moe"
parameters = 1_000
active_parameters = 10
quantization = "Q4_K_M"
context_length = 4096
license = "MIT"
tools = true
vision = true
draft = "Ref"
aliases = ["big:latest"]
cache = [{{ layers = 2, heads = 3, key = 5, value = 7 }}, {{ layers = 1, heads = 1, key = 8, value = 0, window = 100 }}]
[model.hub]
repository = "a/b"
revision = "{revision}"
files = [
  {{ path = "Q4/x-00001-of-00002.gguf", size = 10, sha256 = "{one}" }},
  {{ path = "Q4/x-00002-of-00002.gguf", size = 600, sha256 = "{two}" }},
]
projector = {{ path = "mmproj-F16.gguf", size = 5, sha256 = "{three}" }}
""".format(revision="b" * 40, one="1" * 64, two="2" * 64, three="3" * 64)
REFERENCE = """
[[model]]
name = "Ref"
architecture = "llama"
parameters = 100
quantization = "Q4_0"
context_length = 1
license = "MIT"
vision = true
cache = [{{ layers = 1, heads = 1, key = 1, value = 1 }}]
[model.hub]
repository = "a/b"
revision = "{revision}"
path = "m-00001-of-00002.gguf"
sha256 = "{sha}"
projector = "mmproj-F16.gguf"
size = 60
approximate = true
""".format(sha="a" * 64, revision="b" * 40)


# -- the one that ships


def test_first_entry_is_available_without_the_hub() -> None:
    catalog = load()
    entry = catalog.get("smolLM2-135m-INSTRUCT")
    assert entry is catalog.entries[0]
    assert entry.size == 98_362_432
    assert [type(source) for source in entry.files[0].sources] == [HubSource, PackageSource]
    assert catalog.with_digest(entry.files[0].sha256) is entry
    assert catalog.get("no such") is None
    assert catalog.with_digest("0" * 64) is None
    for each in catalog.entries:
        assert each.template_path is None or each.template_path.is_file()


def test_catalog_has_models_of_every_size_and_kind() -> None:
    entries = load().entries
    writes = [entry for entry in entries if entry.purpose is Purpose.GENERATE]
    assert len(writes) >= 40
    assert min(entry.size for entry in writes) < GB < 100 * GB < max(entry.size for entry in writes)
    assert sum(entry.size > 100 * GB for entry in writes) >= 2
    assert sum(not entry.dense for entry in writes) >= 10
    assert sum(entry.vision for entry in writes) >= 8
    assert sum(entry.tools for entry in writes) >= 20
    assert {entry.purpose for entry in entries} == set(Purpose)
    assert sum(len(entry.files) > 1 for entry in entries) >= 3


@pytest.mark.parametrize(
    ("model", "draft"),
    [
        ("Qwen2.5-7B-Instruct", "Qwen2.5-0.5B-Instruct"),
        ("Qwen2.5-32B-Instruct", "Qwen2.5-0.5B-Instruct"),
        ("Qwen2.5-72B-Instruct", "Qwen2.5-0.5B-Instruct"),
        ("Qwen2.5-Coder-32B-Instruct", "Qwen2.5-0.5B-Instruct"),
        ("Qwen3-32B", "Qwen3-0.6B"),
        ("Llama-3.3-70B-Instruct", "Llama-3.2-1B-Instruct"),
        ("Gemma-3-27B-it", "Gemma-3-1B-it"),
    ],
)
def test_catalog_has_the_documented_draft_pairs(model: str, draft: str) -> None:
    entry = load().get(model)
    assert entry is not None
    assert entry.draft == draft


@pytest.mark.parametrize("entry", load().entries, ids=lambda entry: entry.name)
def test_catalog_entries_are_plausible(entry: CatalogEntry) -> None:
    bits = 8 * entry.size / entry.parameters
    usual = {"Q3": (3.2, 4.2), "Q4": (4.3, 8.0), "Q8": (8.3, 9.1), "MX": (4.2, 4.8)}
    least, most = usual[entry.quantization.removeprefix("UD-")[:2]]
    assert least <= bits <= most, "the size does not fit the parameters"
    # What a token costs is between a few hundred bytes and a few megabytes in every model there is.
    assert entry.cache_bytes(1) < 1 << 22
    assert entry.cache_bytes(4096) <= 4096 * entry.cache_bytes(1)
    assert entry.repository.count("/") == 1
    assert entry.file_name.casefold().endswith(".gguf")
    if entry.hub is None:
        assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) and file.sources for file in entry.files)
    elif not entry.approximate:
        assert entry.size % 1000, "a size that was read is no round number"


# -- what is read


def test_parse_model_with_pinned_hub_files() -> None:
    big = parse(REFERENCE + PINNED).entries[1]
    first = HubSource("a/b", "b" * 40, "Q4/x-00001-of-00002.gguf")
    assert big.files[0] == ModelFile("x-00001-of-00002.gguf", 10, "1" * 64, (first,))
    assert (big.size, big.active_parameters, big.dense, big.tools, big.vision) == (610, 10, False, True, True)
    assert big.projector is not None
    assert big.projector.name == "mmproj-Big.gguf"  # its own name is that of many
    assert big.source == Manifest("Big", big.files, big.projector, None, 4096, "catalogue")
    assert (big.sha256, big.file_name, big.repository) == ("1" * 64, "x-00001-of-00002.gguf", "a/b")
    assert big.cache == (CacheLayers(2, 3, 5, 7), CacheLayers(1, 1, 8, 0, 100))
    assert big.cache_bytes(1000) == 2 * (2 * 3 * 12 * 1000 + 8 * 612)
    assert big.cache_bytes(10) == 2 * (2 * 3 * 12 * 10 + 8 * 10)


def test_parse_model_with_a_hub_reference() -> None:
    catalog = parse(REFERENCE)
    entry = catalog.entries[0]
    path = "m-00001-of-00002.gguf"
    assert entry.source == HubReference("Ref", "a/b", path, "", "b" * 40, "a" * 64, "mmproj-F16.gguf")
    assert (entry.size, entry.approximate, entry.vision, entry.dense) == (60, True, True, True)
    assert catalog.with_digest("a" * 64) is entry
    found = Manifest("m", (ModelFile("m.gguf", 1, "c" * 64),), origin="hub")
    assert entry.complete(found) == Manifest("Ref", found.files, None, None, 1, "hub")


def test_parse_model_known_only_by_quantization() -> None:
    text = REFERENCE.replace('path = "m-00001-of-00002.gguf"\n', "").replace("revision", "# ")
    entry = parse(text).entries[0]
    assert entry.hub is not None
    assert (entry.hub.path, entry.hub.quantization, entry.hub.revision) == ("", "Q4_0", "main")
    assert entry.file_name == ""


def test_get_ignores_case_of_names_and_aliases() -> None:
    catalog = parse(REFERENCE + PINNED)
    assert catalog.get("BIG:Latest") is catalog.get("big") is catalog.entries[1]


# -- what is refused


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (WITH_FILE, 'name = "M"', 'name = "../M"'),
        (WITH_FILE, 'name = "m.gguf"', 'name = "../m.gguf"'),
        (WITH_FILE, 'name = "m.gguf"', 'name = "m.bin"'),
        (WITH_FILE, "parameters = 100", "parameters = true"),
        (WITH_FILE, "parameters = 100", "parameters = 100\nactive_parameters = 101"),
        (WITH_FILE, "parameters = 100", "parameters = 1"),
        (WITH_FILE, "parameters = 100", "parameters = 1000000"),
        (WITH_FILE, "size = 60", "size = 0"),
        (WITH_FILE, "a" * 64, "a" * 63),
        (WITH_FILE, "b" * 40, "main"),
        (WITH_FILE, 'kind = "hub"', 'kind = "ftp"'),
        (WITH_FILE, 'path = "m.gguf"', 'path = "/m.gguf"'),
        (WITH_FILE, 'path = "m.gguf"', 'path = "x/../m.gguf"'),
        (WITH_FILE, 'license = "MIT"', "license = 3"),
        (WITH_FILE, 'license = "MIT"', 'license = "MIT"\ncolour = "red"'),
        (WITH_FILE, 'license = "MIT"', 'license = "MIT"\nchat_template = "../../x"'),
        (WITH_FILE, 'license = "MIT"', 'license = "MIT"\nvision = true'),
        (WITH_FILE, 'license = "MIT"', 'license = "MIT"\ntools = "yes"'),
        (WITH_FILE, 'license = "MIT"', 'license = "MIT"\npurpose = "paint"'),
        (WITH_FILE, 'license = "MIT"', 'license = "MIT"\npurpose = "embed"\ntools = true'),
        (WITH_FILE, 'license = "MIT"', 'license = "MIT"\ndraft = "M"'),
        (WITH_FILE, 'license = "MIT"', 'license = "MIT"\ndraft = "nobody"'),
        (WITH_FILE, 'license = "MIT"', 'license = "MIT"\naliases = ["a b"]'),
        (WITH_FILE, 'license = "MIT"', 'license = "MIT"\naliases = ["m"]'),
        (WITH_FILE, 'quantization = "Q4_0"', 'quantization = "Q40"'),
        (WITH_FILE, 'quantization = "Q4_0"', 'quantization = "q4_0"'),
        (WITH_FILE, "context_length = 1", "context_length = 99999999"),
        (WITH_FILE, "cache =", "# "),
        (WITH_FILE, "key = 1", "key = 0"),
        (WITH_FILE, "key = 1", "keys = 1"),
        (WITH_FILE, "[[model.file]]", "[[model.phile]]"),
        (WITH_FILE, "[[model.file]]", '[model.hub]\nrepository = "a/b"\n[[model.file]]'),
        (WITH_FILE, "[[model]]", "[[model"),
        (REFERENCE, "a/b", "b"),
        (REFERENCE, "00001-of", "00002-of"),
        (REFERENCE, "m-00001-of-00002.gguf", "../m.gguf"),
        (REFERENCE, "size = 60", ""),
        (REFERENCE, "projector", "colour"),
        (REFERENCE, 'projector = "mmproj-F16.gguf"', ""),
        (REFERENCE, "vision = true", ""),
        (REFERENCE + PINNED, "00002-of-00002.gguf", "00001-of-00002.gguf"),
        (REFERENCE + PINNED, "00002-of-00002.gguf", "00003-of-00002.gguf"),
        (REFERENCE + PINNED, "Q4/x-00001-of-00002.gguf", "Q4/x.gguf"),
        (REFERENCE + PINNED, "size = 600", "size = 30"),  # the draft is no smaller then
        (REFERENCE + PINNED, "parameters = 1_000\n", "parameters = 100\n"),
        (REFERENCE + PINNED, 'draft = "Ref"', 'draft = "ref"'),
        (REFERENCE + PINNED, '["big:latest"]', '["ref"]'),
        (PINNED, "", ""),  # its draft is not there
    ],
)
def test_parse_rejects_an_invalid_entry(text: str, old: str, new: str) -> None:
    assert old in text
    with pytest.raises(InternalError):
        parse(text.replace(old, new))


def test_parse_error_names_the_model_and_the_field() -> None:
    with pytest.raises(InternalError, match="context_length of M cannot be -1"):
        parse(WITH_FILE.replace("context_length = 1", "context_length = -1"))


def test_parse_rejects_two_models_of_one_name() -> None:
    with pytest.raises(InternalError, match="same name"):
        parse(WITH_FILE + WITH_FILE.replace('name = "M"', 'name = "m"'))


def test_parse_rejects_two_files_of_one_name() -> None:
    with pytest.raises(InternalError, match=r"m\.gguf, as another"):
        parse(WITH_FILE + WITH_FILE.replace('name = "M"', 'name = "N"').replace("a" * 64, "c" * 64))


def test_parse_rejects_an_empty_catalog() -> None:
    with pytest.raises(InternalError):
        parse("")
