"""Edits of JSON, YAML and TOML as text: additions change no byte around them; taking them out restores it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from meshllm.agents import json_text, yaml_text
from meshllm.agents.text_edit import APPEND, CannotEdit, TextFormat, add_checked, remove_checked, same
from meshllm.agents.user_files import FORMATS

JSON, YAML, TOML = FORMATS["json"], FORMATS["yaml"], FORMATS["toml"]
VALUE = {"name": "mesh", "models": [{"id": "a/b", "context": 8192}], "on": True, "none": None}

JSON_TEXTS = [
    "{}",
    '{"a": 1}',
    '{ "a": {"x": [1, 2]}, "provider": {"other": {}} }',
    '{"provider":{}}',
    '// mine\n{\n  "a": 1, // one\n  "provider": {\n    "other": { "key": "}" } // two\n    /* three */\n  }\n}\n',
    '{\n\t"provider": {\n\t\t"other": 1\n\t},\n\t"z": "\\" // no comment"\n}',
    '{\r\n  "a": 1,\r\n  "provider": {\r\n    "other": [ ]\r\n  }\r\n}\r\n',
    '\ufeff{\n    "a": [\n        1\n    ]\n}\n',
    '{ "a": 1, }',
    '{\n  "provider": {\n    "o": 1, // mine\n  },\n}\n',
]
YAML_TEXTS = [
    "name: mine\nversion: 1.0.0\n",
    "# mine\nname: x # y\nmodels:\n  - name: a\n    key: b # c\n\n  # another\n  - name: d\n\n# end\nrules: []\n",
    "models:\n- a\n- b\n",
    "name: x\r\nmodels:\r\n  - a\r\nlast: 1\r\n",
    "text: |\n  one\n\n  two\nmodels:\n  - prompt: >-\n      long\n      text\n",
    "# only a comment\n",
    "",
]


TOML_TABLE = {"name": "mesh-llm", "url": "http://x", "n": 3, "on": True, "list": ["a"], "deep": {"k.v": "é"}}
TOML_TEXTS = [
    "",
    'model = "m" # mine\n',
    '# mine\nmodel = "m"\n\n[model_providers.other]\nname = "o" # theirs\n\n[profiles.p]\nmodel = "z"\n',
    "[model_providers]\n",
    'model_providers.other.name = "o"\n[projects."/a.b"]\ntrust = "yes"\n\n\n',
    'a = 1\r\n[t]\r\nb = """\r\n[model_providers.mesh]\r\n"""\r\n',
    "[[list]]\na = 1\n[[list]]\na = 2\n# the end\n",
]


def shared(one: str, other: str) -> int:
    """How many letters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def only_inserted(before: str, after: str) -> bool:
    """Whether `after` is `before` with one insertion, or with a comma and one insertion behind it."""
    start = shared(before, after)
    end = shared(before[start:][::-1], after[start:][::-1])
    middle = before[start : len(before) - end]
    return not middle or after[start:].startswith(f",{middle}")


@pytest.mark.parametrize("text", JSON_TEXTS)
@pytest.mark.parametrize("path", [("provider", "mesh"), ("mesh",), ("new", "deep", "mesh")])
def test_json_addition_keeps_every_byte_and_is_taken_out_exactly(text: str, path: tuple[str, ...]) -> None:
    after, addition = add_checked(JSON, text, path, VALUE)
    assert only_inserted(text, after)
    assert remove_checked(JSON, after, addition) == text


@pytest.mark.parametrize("text", YAML_TEXTS)
@pytest.mark.parametrize("path", [("models", APPEND), ("mesh",), ("new", "deep")])
def test_yaml_addition_keeps_every_line_and_is_taken_out_exactly(text: str, path: tuple[str, ...]) -> None:
    after, addition = add_checked(YAML, text, path, VALUE)
    kept = iter(after.splitlines(keepends=True))
    assert all(line in kept for line in text.splitlines(keepends=True))
    assert remove_checked(YAML, after, addition) == text


def test_lists_of_json_get_a_further_item() -> None:
    text = '{\n  "openai": [\n    {"id": "mine"} // best\n  ]\n}\n'
    after, addition = add_checked(JSON, text, ("openai", APPEND), VALUE)
    assert JSON.parse(after)["openai"] == [{"id": "mine"}, VALUE]
    assert remove_checked(JSON, after, addition) == text


@pytest.mark.parametrize(
    ("form", "text", "change"),
    [
        (JSON, '{\n  "theme": "dark", // mine\n  "provider": {"o": 1}\n}\n', ('"dark"', '"light"')),
        (JSON, '{\n  "theme": "dark",\n  "provider": {\n    "o": 1\n  }\n}\n', ('"theme"', '"more": [],\n  "theme"')),
        (YAML, "name: x\nprovider:\n  o: 1 # mine\nlast: 2\n", ("last: 2", "last: 3\nmore: 4")),
    ],
)
def test_later_changes_of_the_user_survive_the_removal(form: TextFormat, text: str, change: tuple[str, str]) -> None:
    after, addition = add_checked(form, text, ("provider", "mesh"), VALUE)
    assert remove_checked(form, after.replace(*change), addition) == text.replace(*change)


def test_entries_behind_ours_survive_the_removal() -> None:
    after, addition = add_checked(JSON, '{"provider": {\n  "o": 1\n}}', ("provider", "mesh"), VALUE)
    with_more, _ = add_checked(JSON, after, ("provider", "later"), 2)
    assert JSON.parse(remove_checked(JSON, with_more, addition)) == {"provider": {"o": 1, "later": 2}}
    after, addition = add_checked(YAML, "models:\n  - a\n", ("models", APPEND), VALUE)
    with_more, _ = add_checked(YAML, after, ("models", APPEND), "later")
    assert remove_checked(YAML, with_more, addition) == "models:\n  - a\n  - later\n"


@pytest.mark.parametrize("form", [JSON, YAML, TOML])
def test_value_that_was_changed_is_not_taken_out(form: TextFormat) -> None:
    after, addition = add_checked(form, form.empty, ("provider", "mesh"), {"context": 8192})
    with pytest.raises(CannotEdit, match="provider"):
        remove_checked(form, after.replace("8192", "9999"), addition)


@pytest.mark.parametrize(
    ("form", "text", "path"),
    [
        (JSON, '{"provider": {"mesh": 1}}', ("provider", "mesh")),
        (JSON, '{"provider": []}', ("provider", "mesh")),
        (JSON, '{"models": {}}', ("models", APPEND)),
        (JSON, "[]", ("mesh",)),
        (YAML, "models: []\n", ("models", APPEND)),
        (YAML, "models: {a: 1}\n", ("models", APPEND)),
        (YAML, "models:\n", ("models", APPEND)),
        (YAML, "{a: 1}\n", ("mesh",)),
        (YAML, "mesh: 1\n", ("mesh",)),
    ],
)
def test_text_without_a_place_is_refused(form: TextFormat, text: str, path: tuple[str, ...]) -> None:
    with pytest.raises(CannotEdit):
        add_checked(form, text, path, VALUE)


@pytest.mark.parametrize(
    ("form", "text", "where"),
    [
        (JSON, '{\n  "a": 1\n  "b": 2\n}', "line 3, column 3"),
        (JSON, '{"a": 1', "line 1, column 8"),
        (JSON, "{'a': 1}", "line 1, column 2"),
        (JSON, '{"a": 1} x', "line 1, column 10"),
        (JSON, '{"a": nul}', "line 1, column 7"),
        (JSON, "[" * 2000, "nested too deeply"),
        (YAML, "a: 1\n  b: [\n", "line"),
        (YAML, "a: !secret x\n", "line 1"),
    ],
)
def test_broken_text_is_refused_with_its_place(form: TextFormat, text: str, where: str) -> None:
    with pytest.raises(CannotEdit, match=where):
        form.parse(text)


PRINTABLE = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"])
NAMES = st.text(st.sampled_from("ab"), max_size=2)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(PRINTABLE, max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from("abc"), values, max_size=3)


@given(objects, values, st.sampled_from([None, 1, 2, "\t"]))
def test_any_json_object_takes_an_addition(data: dict[str, Any], value: Any, indent: int | str | None) -> None:
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    assert same(json_text.parse(text), data)
    after, addition = add_checked(JSON, text, ("mesh", "x"), value)
    assert same(json.loads(after), data | {"mesh": {"x": value}})
    assert remove_checked(JSON, after, addition) == text


@given(objects, values)
def test_any_yaml_mapping_in_block_style_takes_an_addition(data: dict[str, Any], value: Any) -> None:
    text = yaml.safe_dump(data, default_flow_style=False, allow_unicode=True) if data else ""
    after, addition = add_checked(YAML, text, ("mesh", "x"), value)
    assert same(yaml_text.parse(after), data | {"mesh": {"x": value}})
    assert same(yaml_text.parse(remove_checked(YAML, after, addition)), data)


@pytest.mark.parametrize("text", TOML_TEXTS)
@pytest.mark.parametrize("path", [("model_providers", "mesh"), ("mesh",), ("new", "deep.er", "mesh")])
def test_toml_table_is_added_behind_all_else_and_taken_out_exactly(text: str, path: tuple[str, ...]) -> None:
    after, addition = add_checked(TOML, text, path, TOML_TABLE)
    assert after.startswith(text)
    assert "\r\n" not in text or "\n" not in after.replace("\r\n", "")
    assert remove_checked(TOML, after, addition) == text
    # With what the user wrote meanwhile, before it and behind it.
    newline = "\r\n" if "\r\n" in text else "\n"
    before, behind = f"first = 1{newline}", f"{newline}[last]{newline}a = 1 # theirs{newline}"
    assert remove_checked(TOML, before + after + behind, addition) == before + text + behind


def test_toml_without_a_last_newline_gets_one() -> None:
    after, addition = add_checked(TOML, "a = 1", ("t", "mesh"), {"n": 1})
    assert after == "a = 1\n\n[t.mesh]\nn = 1\n"
    assert remove_checked(TOML, after, addition) == "a = 1\n"


def test_toml_table_that_was_written_otherwise_is_taken_out_without_the_comments_behind_it() -> None:
    after, addition = add_checked(TOML, "a = 1\n", ("t", "mesh"), {"name": "x", "n": 1})
    other = after.replace('name = "x"\nn = 1\n', "n=1 # mine\nname='x'\n") + "\n# about u\n[u]\n"
    assert remove_checked(TOML, other, addition) == "a = 1\n\n# about u\n[u]\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = ", "Invalid value"),
        ("a = 1\na = 2\n", "line 2"),
        ("[t.mesh]\n", "value of its own"),
        ('t.mesh.n = "x"\n', "value of its own"),
        ("t = { other = 1 }\n", r"^t is written as an inline table .* cannot add t\.mesh to it$"),
        ("[a]\n\n[t]\nmesh2 = 1\n\n[t.mesh]\nn = 2\n", "value of its own"),
        ("t = 3\n", "t is no table"),
        ("[[t]]\n", "t is no table"),
        ("a = " + "[" * 5000, "."),
    ],
)
def test_toml_without_a_place_is_refused(text: str, reason: str) -> None:
    with pytest.raises(CannotEdit, match=reason):
        add_checked(TOML, text, ("t", "mesh"), {"n": 1})
