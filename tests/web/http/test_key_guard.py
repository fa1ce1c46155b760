"""Guesses of the API key, and the reports of its use."""

from __future__ import annotations

from meshllm.web.http.access_control import AccessPolicy
from meshllm.web.http.key_guard import GUESSES_AT_ONCE, GUESSES_PER_SECOND, MAX_ADDRESSES, TRUSTED_SECONDS, KeyGuard

KEY = "k3y-of-this-node-0123"


class Rig:
    def __init__(self) -> None:
        self.now = 0.0
        self.reports: list[tuple[str, str]] = []
        self.guard = KeyGuard(lambda event, address: self.reports.append((event, address)), lambda: self.now)
        self.policy = AccessPolicy(KEY, guard=self.guard)

    def ask(self, key: str, peer: str = "192.0.2.7") -> int:
        denied = self.policy.refuse_without_key({b"authorization": f"Bearer {key}".encode()}, peer)
        return 200 if denied is None else denied.status


def test_guesses_of_an_address_are_limited_and_the_right_key_is_then_no_news() -> None:
    rig = Rig()
    answers = [rig.ask(f"guess-{number}") for number in range(1000)]
    assert answers.count(401) == GUESSES_AT_ONCE
    assert set(answers[int(GUESSES_AT_ONCE) :]) == {429}
    assert rig.ask(KEY) == 429, "a guesser must not learn it now"
    assert rig.ask(KEY, "192.0.2.8") == 200, "another address is not concerned"
    rig.now = 1 / GUESSES_PER_SECOND
    assert rig.ask(KEY) == 200
    assert rig.reports.count(("api_key_wrong", "192.0.2.7")) == 1000


def test_wrong_program_behind_a_proxy_does_not_lock_out_the_others() -> None:
    rig = Rig()
    assert rig.ask(KEY) == 200
    assert [rig.ask("wrong") for _ in range(100)][-1] == 429
    assert rig.ask(KEY) == 200
    rig.now = TRUSTED_SECONDS - 1
    assert rig.ask(KEY) == 200


def test_request_without_a_key_is_no_guess() -> None:
    rig = Rig()
    for _ in range(100):
        assert rig.policy.refuse_without_key({}, "192.0.2.7").status == 401  # type: ignore[union-attr]
    assert rig.reports == []
    assert rig.ask(KEY) == 200


def test_use_is_reported_once_an_hour_for_each_address() -> None:
    rig = Rig()
    for now in (0.0, 10.0, 3599.0, 3601.0):
        rig.now = now
        assert rig.ask(KEY) == 200
        assert rig.ask(KEY, "2001:db8::1") == rig.ask(KEY, "2001:db8::2") == 200
    assert rig.reports == [("api_key_used", "192.0.2.7"), ("api_key_used", "2001:db8::/64")] * 2


def test_table_of_addresses_is_bounded() -> None:
    rig = Rig()
    for number in range(MAX_ADDRESSES * 2):
        rig.ask("x", f"198.51.{number // 256}.{number % 256}")
    assert len(rig.guard._addresses) == MAX_ADDRESSES


def test_one_ipv6_network_is_one_guesser() -> None:
    rig = Rig()
    answers = [rig.ask("x", f"2001:db8::{number:x}") for number in range(100)]
    assert answers.count(401) == GUESSES_AT_ONCE
    assert rig.ask("x", "::ffff:192.0.2.9") == 401
    assert rig.reports[-1] == ("api_key_wrong", "192.0.2.9")
