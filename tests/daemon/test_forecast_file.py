"""`forecasts.json`: what was learned is there after a restart, and a damaged file costs no start."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.records import NodeId
from meshllm.core.split.corrections import Corrections
from meshllm.daemon import forecast_file

A, B = NodeId(b"a" * 32), NodeId(b"b" * 32)


def learned() -> Corrections:
    found = Corrections()
    found.observe((A, B), 10**8, 0.005, 0.051, 300, 1000.0)
    found.observe((A,), 10**10, 0.5, 0.3, 300, 1500.0)
    return found


def test_corrections_are_there_after_a_restart(tmp_path: Path) -> None:
    forecast_file.save(tmp_path, learned().all, now=2000.0, unix=1_800_000_000.0)
    # The machine was off for an hour, and its monotonic clock began anew.
    loaded = Corrections(forecast_file.load(tmp_path, now=50.0, unix=1_800_003_600.0))
    assert [each.at for each in loaded.all] == pytest.approx([50.0 - 3600 - 1000, 50.0 - 3600 - 500])
    assert loaded.forecast((A, B), 10**8, 0.005, 50.0) == pytest.approx(0.051, rel=0.01)
    assert stat.S_IMODE((tmp_path / forecast_file.FILE).stat().st_mode) == 0o600


def test_no_file_is_no_correction(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert forecast_file.load(tmp_path, 0.0, 0.0) == ()
    assert not caplog.records


def test_a_clock_that_was_set_back_does_not_make_a_measurement_last(tmp_path: Path) -> None:
    forecast_file.save(tmp_path, learned().all, now=2000.0, unix=1_800_000_000.0)
    assert all(each.at <= 50.0 for each in forecast_file.load(tmp_path, now=50.0, unix=1_700_000_000.0))


def good() -> dict[str, Any]:
    one = {"nodes": [A.hex()], "size": 3, "speed": 1.0, "used_speed": 1.0, "factor": 1.0, "steps": 9.0, "measured": 1.0}
    return {"format": forecast_file.FORMAT, "corrections": [one]}


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": []},
        {"nodes": ["aa"]},
        {"nodes": ["zz" * 32]},
        {"nodes": [A.hex()] * 99},
        {"nodes": 7},
        {"size": -1},
        {"size": 2.5},
        {"speed": "fast"},
        {"speed": float("nan")},
        {"factor": None},
        {"measured": True},
    ],
)
def test_damaged_file_is_logged_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    content = good()
    (tmp_path / forecast_file.FILE).write_text(json.dumps(content))
    assert len(forecast_file.load(tmp_path, 0.0, 10.0)) == 1
    content["corrections"][0] |= change
    (tmp_path / forecast_file.FILE).write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        assert forecast_file.load(tmp_path, 0.0, 10.0) == ()
    assert "forecasts of splits start without what was measured" in caplog.text


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=9)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=4),
                st.dictionaries(st.sampled_from(["format", "corrections", "nodes", "size", "speed"]), inner),
            ),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_no_content_raises(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    home = tmp_path_factory.mktemp("home")
    (home / forecast_file.FILE).write_bytes(content)
    assert isinstance(forecast_file.load(home, 0.0, 10.0), tuple)


def test_figures_out_of_bounds_are_cut(tmp_path: Path) -> None:
    content = good()
    content["corrections"][0] |= {"factor": 1e9, "steps": 1e12, "speed": 0, "used_speed": 1e300}
    (tmp_path / forecast_file.FILE).write_text(json.dumps(content))
    (found,) = forecast_file.load(tmp_path, 0.0, 10.0)
    assert (found.factor, found.steps) == (16.0, 512.0)
    assert 0 < found.speed < found.used_speed < 1e19
    too_long = json.dumps(good() | {"more": "x" * forecast_file.MAX_BYTES})
    (tmp_path / forecast_file.FILE).write_text(too_long)
    assert forecast_file.load(tmp_path, 0.0, 10.0) == ()
