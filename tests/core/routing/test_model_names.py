"""The model that a caller's name means."""

from __future__ import annotations

import pytest

from meshllm.core.routing.model_names import ModelNames, means_of

KNOWN = ("Qwen3-8B", "SmolLM2-135M-Instruct", "org/Model:Q4_K_M", "twin", "Twin")
ALIASES = {"gpt-4o": "Qwen3-8B", "small": "smollm2-135m-instruct", "twin": "Qwen3-8B", "later": "not-here"}


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("Qwen3-8B", "Qwen3-8B"),
        ("qwen3-8b", "Qwen3-8B"),
        ("QWEN3-8B.GGUF", "Qwen3-8B"),
        ("Qwen3-8B.gguf", "Qwen3-8B"),
        ("ORG/model:q4_k_m", "org/Model:Q4_K_M"),
        ("gpt-4o", "Qwen3-8B"),
        ("small", "SmolLM2-135M-Instruct"),
        ("later", "not-here"),
        # A member can serve a model by any name: the owner's word comes first.
        ("twin", "Qwen3-8B"),
        ("Twin", "Twin"),
        ("Qwen3", "Qwen3"),
        ("GPT-4o", "Qwen3-8B"),
        ("TWIN", "Qwen3-8B"),
        ("Qwen3-8B:latest", "Qwen3-8B"),
        ("qwen3-8b:Latest", "Qwen3-8B"),
        (":latest", ":latest"),
        ("other:latest", "other:latest"),
        ("", ""),
    ],
)
def test_name_means_one_known_model_or_stays(asked: str, meant: str) -> None:
    assert ModelNames(KNOWN, ALIASES).find(asked) == meant


def test_name_of_two_models_in_other_letters_is_the_name_of_none() -> None:
    assert ModelNames(KNOWN, {}).find("TWIN") == "TWIN"


QUANTIZED = ("Other-Model.Q4_1", "Qwen3-8B-Q4_K_M", "Qwen3-8B-Q8_0", "Tiny-UD-IQ2_XXS", "Plain", "Plain-BF16")


@pytest.mark.parametrize(
    ("asked", "meant", "candidates"),
    [
        ("Other-Model", "Other-Model.Q4_1", ()),
        ("other-model.gguf", "Other-Model.Q4_1", ()),
        ("tiny", "Tiny-UD-IQ2_XXS", ()),
        ("Plain", "Plain", ()),  # exact
        ("qwen3-8b", "qwen3-8b", ("Qwen3-8B-Q4_K_M", "Qwen3-8B-Q8_0")),
        ("Qwen3-8B-Q8_0", "Qwen3-8B-Q8_0", ()),
        ("Other-Model.Q8_0", "Other-Model.Q8_0", ()),  # that is another one
        ("alias", "alias-of", ()),
        ("several", "Qwen3-8B", ("Qwen3-8B-Q4_K_M", "Qwen3-8B-Q8_0")),
    ],
)
def test_name_without_its_quantization_is_the_name_of_the_only_such_model(
    asked: str, meant: str, candidates: tuple[str, ...]
) -> None:
    names = ModelNames(QUANTIZED, {"alias": "alias-of", "several": "Qwen3-8B"})
    assert names.find(asked) == meant
    assert names.candidates(asked) == candidates
    assert names.is_known(asked) == (meant in QUANTIZED)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("Other-Model:Q4_1", "Other-Model.Q4_1"),
        ("other-model:q4-1.gguf", "Other-Model.Q4_1"),
        ("Qwen3-8B:q4-k-m", "Qwen3-8B-Q4_K_M"),
        ("qwen3-8b.Q8_0", "Qwen3-8B-Q8_0"),
        ("Tiny:UD-IQ2_XXS", "Tiny-UD-IQ2_XXS"),
        ("Plain:bf16", "Plain-BF16"),
        ("Other-Model:Q5_0", "Other-Model:Q5_0"),  # no such one
        ("Other-Model:latest", "Other-Model.Q4_1"),  # no quantization
    ],
)
def test_quantization_may_be_stated_in_another_form(asked: str, meant: str) -> None:
    assert ModelNames(QUANTIZED, {}).find(asked) == meant


def test_what_nodes_ask_for_hides_no_model_that_the_mesh_has() -> None:
    wished = ("Other-Model", "qwen3-8b", "PLAIN", "absent", "Absent-too.Q4_1")
    names = ModelNames(QUANTIZED, {"mine": "Other-Model"}, wished)
    assert names.find("Other-Model") == names.find("mine") == "Other-Model.Q4_1"
    assert names.candidates("qwen3-8b") == ("Qwen3-8B-Q4_K_M", "Qwen3-8B-Q8_0")
    assert names.find("plain") == "Plain"
    assert (names.find("ABSENT"), names.find("absent-too")) == ("absent", "Absent-too.Q4_1")
    assert names.wished == ("Absent-too.Q4_1", "absent")
    assert names.is_known("Absent")
    assert not names.is_known("nothing")
    assert (names.means("absent"), names.means("other-model")) == ((), ("Other-Model.Q4_1",))


def test_further_name_of_a_file_means_its_model() -> None:
    names = ModelNames(["SmolLM2"], {}, same={"SmolLM2.Q4_1": "SmolLM2", "gone.Q8_0": "gone"})
    for asked in ("SmolLM2", "smollm2.q4_1", "SmolLM2:Q4_1", "smollm2-q4-1.gguf"):
        assert names.find(asked) == "SmolLM2"
    assert names.find("gone") == "gone"
    assert not names.is_known("gone")


def test_meanings_are_those_of_all_names_together() -> None:
    same = {"SmolLM2.Q4_1": "SmolLM2"}
    asked = ("other-model", "Plain", "nothing", "qwen3-8b", "SmolLM2:Q4_1", "SmolLM2")
    assert means_of(asked, [*QUANTIZED, "SmolLM2"], same) == {
        "other-model": ("Other-Model.Q4_1",),
        "nothing": (),
        "qwen3-8b": ("Qwen3-8B-Q4_K_M", "Qwen3-8B-Q8_0"),
        "SmolLM2:Q4_1": ("SmolLM2",),
    }
