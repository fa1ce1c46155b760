"""The catalogue that ships, and how a damaged one is refused."""

from __future__ import annotations

import pytest

from meshllm.errors import OurFault, UnknownModel
from meshllm.models.catalog import load, parse
from meshllm.models.manifest import HubSource, PackageSource

GOOD = """
[[model]]
name = "M"
architecture = "llama"
parameters = 1
quantization = "Q4_0"
context_length = 1
license = "MIT"
[[model.file]]
name = "m.gguf"
size = 1
sha256 = "{sha}"
[[model.file.source]]
kind = "hub"
repository = "a/b"
revision = "{revision}"
path = "m.gguf"
""".format(sha="a" * 64, revision="b" * 40)


def test_the_one_that_ships() -> None:
    catalog = load()
    entry = catalog.find("smolLM2-135m-INSTRUCT")
    assert entry.name == "SmolLM2-135M-Instruct"
    assert entry.size == 98_362_432
    assert [type(source) for source in entry.files[0].sources] == [HubSource, PackageSource]
    assert catalog.with_digest(entry.files[0].sha256) is entry
    for each in catalog.entries:
        assert each.template_path is None or each.template_path.is_file()


@pytest.mark.parametrize("name", ["SmolLM2", "smollm2-135m-instruc", "SmolLM-135M-Instruct"])
def test_suggests_what_was_meant(name: str) -> None:
    with pytest.raises(UnknownModel, match=r"SmolLM2-135M-Instruct"):
        load().find(name)


def test_a_good_one() -> None:
    assert parse(GOOD).entries[0].template_path is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "M"', 'name = "../M"'),
        ('name = "m.gguf"', 'name = "../m.gguf"'),
        ('name = "m.gguf"', 'name = "m.bin"'),
        ("parameters = 1", "parameters = true"),
        ("size = 1", "size = 0"),
        ("a" * 64, "a" * 63),
        ("b" * 40, "main"),
        ('kind = "hub"', 'kind = "ftp"'),
        ('path = "m.gguf"', 'path = "/m.gguf"'),
        ('path = "m.gguf"', 'path = "x/../m.gguf"'),
        ('license = "MIT"', "license = 3"),
        ('license = "MIT"', 'license = "MIT"\ncolour = "red"'),
        ('license = "MIT"', 'license = "MIT"\nchat_template = "../../x"'),
        ("[[model.file]]", "[[model.phile]]"),
        ("[[model]]", "[[model"),
    ],
)
def test_a_damaged_one_is_our_fault(old: str, new: str) -> None:
    assert old in GOOD
    with pytest.raises(OurFault):
        parse(GOOD.replace(old, new))


def test_two_of_a_name() -> None:
    with pytest.raises(OurFault, match="same name"):
        parse(GOOD + GOOD.replace('name = "M"', 'name = "m"'))


def test_nothing_at_all() -> None:
    with pytest.raises(OurFault):
        parse("")
