"""`mesh-llm blackboard`: posts, lists, searches, follows and claims through a real console server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from board_rig import BoardNode
from typer.testing import CliRunner, Result

from meshllm.board.rooms import room_here
from meshllm.cli import entry
from meshllm.cli.board_follow import Follower
from meshllm.core.board.entries import ENTRIES_AT_ONCE
from meshllm.errors import (
    BoardOff,
    BoardRate,
    BoardRefused,
    EnvironmentFailure,
    MeshError,
    NotRunning,
    UsageError,
)

ROOM = "org/repo"
PATIENCE = 60.0


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BoardNode]:
    """A node that runs, and a working directory in a checkout of org/repo."""
    monkeypatch.setenv("MESH_LLM_HOME", str(tmp_path / "home"))
    checkout = tmp_path / "checkout"
    (checkout / ".git").mkdir(parents=True)
    (checkout / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (checkout / ".git" / "config").write_text('[remote "origin"]\n\turl = git@example.org:org/repo.git\n')
    monkeypatch.chdir(checkout)
    made = BoardNode(tmp_path / "home")
    made.start()
    yield made
    made.close()


def run(*words: str, stdin: str | bytes | None = None) -> Result:
    """`mesh-llm blackboard` with these words."""
    return CliRunner().invoke(entry.app, ["blackboard", *words], input=stdin, catch_exceptions=False)


def lines(*words: str) -> list[str]:
    return run(*words).output.splitlines()


# -- writing


def test_post_says_where_and_what_was_replaced(node: BoardNode) -> None:
    done = run("FINDING: mail ann.b@corp.org", "--to", "bob", "--to", "cy", "--name", "zoe")
    (post,) = node.board.posts
    assert done.output == f"Posted {post.id[:8]} in org/repo.\nReplaced before it was posted: 1 email.\n"
    assert (post.text, post.kind, post.room, post.to, post.name) == (
        "FINDING: mail [email]", "finding", ROOM, ("bob", "cy"), "zoe",
    )  # fmt: skip
    assert run("plain").output.count("\n") == 1, "nothing was replaced, so nothing is said of it"
    answer = json.loads(run("--json", "--kind", "tip", "--room", "", "use ripgrep").output)
    assert (answer["post"]["kind"], answer["post"]["room"], answer["replaced"]) == ("tip", "", "")


def test_post_reads_standard_input(node: BoardNode) -> None:
    run("-", stdin="one\ntwo\n\n")
    assert node.board.posts[0].text == "one\ntwo"
    for data, said in ((b"\xff\xfe", "no text"), (b"x" * 70_000, "65,536 bytes"), (b"x" * 5000, "5,000 bytes")):
        with pytest.raises(UsageError, match=said):
            run("-", stdin=data)
    with pytest.raises(UsageError, match="is empty"):
        run("-", stdin="\n")
    assert len(node.board.posts) == 1


def test_reply_goes_to_the_room_of_its_thread(node: BoardNode) -> None:
    root = node.arrive("QUESTION: where?", room="other/repo")
    run("there", "--reply", root["id"][:8])
    reply = node.board.posts[-1]
    assert (reply.room, reply.reply_to, reply.thread) == ("other/repo", root["id"], root["id"])
    with pytest.raises(BoardRefused, match="0123"):
        run("there", "--reply", "0123")


def test_outside_of_a_repository_the_common_room_is_written_and_all_are_read(
    node: BoardNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.arrive("elsewhere", room="other/repo")
    monkeypatch.chdir(tmp_path)
    assert run("hello").output.endswith("in the common room.\n")
    shown = lines()
    assert shown[0].startswith("all rooms, last 24 h")
    assert sum("in other/repo" in line for line in shown) == 1
    assert not any("--all" in line for line in shown)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert room_here() == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("clams",), "looks like the command 'claims'"),
        (("retact",), "'retract'"),
        (("--json", "claims"), "looks like the command 'claims'"),
        (("two", "words"), "several words"),
        (("text", "--search", "x"), "--search has no effect with a text"),
        (("text", "--thread", "ab"), "--thread has no effect"),
        (("text", "--follow"), "--follow has no effect"),
        (("--reply", "ab"), "--reply has no effect with reading"),
        (("--to", "bob"), "--to has no effect"),
        (("--search", "x", "--mine"), "--mine has no effect with --search"),
        (("--search", "x", "--follow"), "--follow has no effect"),
        (("--room", "a", "--all"), "exclude each other"),
        (("claims", "--room", "a", "--all"), "exclude each other"),
        (("--mcp", "--follow"), "--follow has no effect with --mcp"),
        (("text", "--kind", "claim"), "kind: Input should be"),
        (("text", "--room", "r" * 129), "room: has 129 bytes"),
        (("",), "text: is empty"),
        (("x" * 4097,), "4,097 bytes; a message has at most 4,096"),
        (("claim", "k", "--for", "5h"), "--for '5h'"),
        (("claim", "k", "--for", "0m"), "--for '0m'"),
        (("claim", "k", "--for", "soon"), "--for 'soon'"),
        (("claim", ""), "key:"),
        (("--thread", "xyz"), "thread:"),
    ],
)
def test_bad_use_is_refused_and_posts_nothing(node: BoardNode, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")) as caught:
        run(*words)
    assert caught.value.advice
    assert node.board.posts == []


def test_the_first_word_is_a_command_or_the_text(node: BoardNode) -> None:
    run("--", "--follow me")
    run("see claims", "--room", "x")
    run("ok")
    assert [post.text for post in node.board.posts] == ["--follow me", "see claims", "ok"]
    help_text = CliRunner().invoke(entry.app, ["blackboard", "--help"], terminal_width=200).output
    for word in ("--search", "--follow", "--mcp", "claims", "retract", "preview", "TEXT"):
        assert word in help_text
    assert "TEXT" not in CliRunner().invoke(entry.app, ["blackboard", "rooms", "--help"], terminal_width=200).output


# -- reading


def test_list_shows_threads_the_latest_last(node: BoardNode) -> None:
    root = node.arrive("QUESTION: which port?", ago=7200, room=ROOM, kind="question", name="bob", to=("ann",))
    node.arrive("STATUS: building\nstep 2", ago=600, room=ROOM, kind="status", program="codex")
    answer = node.arrive("3131", ago=60, room=ROOM, reply_to=root["id"])
    deeper = node.arrive("thanks", ago=30, room=ROOM, reply_to=answer["id"])
    node.arrive("unseen", room="other/repo")
    node.arrive("old", ago=30 * 3600, room=ROOM)
    status = node.board.posts[1].id[:8]
    assert lines() == [
        "org/repo, last 24 h",
        f"{status}  10 min ago  bob@barn (codex)  STATUS",
        "  building",
        "  step 2",
        "",
        f"{root['id'][:8]}  2 h ago  bob@barn  QUESTION  to ann",
        "  which port?",
        f"    {answer['id'][:8]}  1 min ago  bob@barn",
        "      3131",
        f"    {deeper['id'][:8]}  30 s ago  bob@barn  answers {answer['id'][:8]}",
        "      thanks",
        "1 message in 1 other room: --all shows them.",
    ]


def test_list_takes_the_filters(node: BoardNode) -> None:
    node.arrive("old", ago=30 * 3600, room=ROOM)
    root = node.arrive("asked", ago=7200, room=ROOM, kind="question", name="zoe", to=("ann",))
    node.arrive("elsewhere", ago=60, room="other/repo", reply_to=root["id"])
    run("own")

    def shown(*words: str) -> list[str]:
        return [post["text"] for post in json.loads(run("--json", *words).output)["posts"]]

    assert shown() == ["own", "asked"]
    for words, found in (
        (("--since", "1"), ["own"]),
        (("--since", "40"), ["own", "asked", "old"]),
        (("--all",), ["own", "elsewhere", "asked"]),
        (("--room", "other/repo"), ["elsewhere"]),
        (("--room", ""), []),
        (("--from", "zoe"), ["asked"]),
        (("--mine",), ["own"]),
        (("--to-me",), ["asked"]),
        (("--kind", "question"), ["asked"]),
        (("--thread", root["id"][:8]), ["elsewhere", "asked"]),
        (("-n", "1"), ["own"]),
    ):
        assert shown(*words) == found, words
    assert lines("-n", "1")[0] == "org/repo, last 24 h: 1 older message not shown (--limit)"
    assert lines("--room", "")[0].startswith("No messages: the common room, last 24 h.")
    assert f"in the thread {root['id'][:8]}" in lines("--room", "other/repo")[1]


def test_search_is_best_first_and_looks_at_48_hours(node: BoardNode) -> None:
    node.arrive("the parser", ago=30 * 3600, room=ROOM)
    node.arrive("parser of tables", ago=3600, room=ROOM)
    node.arrive("tables", room=ROOM)
    found = run("--search", "parser tables").output
    assert found.index("parser of tables") < min(found.index("the parser"), found.index("\n  tables"))
    assert "No message in org/repo in the last 1 h" in run("--search", "nothing", "--since", "1").output
    page = json.loads(run("--search", "parser", "--json").output)
    assert len(page["posts"]) == 2


def test_texts_of_others_move_no_cursor_and_are_no_markup(node: BoardNode) -> None:
    evil = "\x1b[2J[bold red]hi[/] :smile: \u202eabc\u202c \x9b31m\r\n\tend\x07"
    node.arrive(evil, room=ROOM, name="b\x1b[1mob", node="ba\nrn", program="[blink]x", to=("a\x07nn",), kind="ki\x1bnd")
    node.run(node.board.claim(blackboard_claim("k\x1b[2J", ROOM)))
    for words in ((), ("--search", "end"), ("--json",), ("claims",), ("claims", "--json"), ("rooms",)):
        output = run(*words).output
        assert all(letter == "\n" or letter.isprintable() for letter in output), words
    shown = run().output
    assert "[bold red]hi[/] :smile:" in shown
    assert "b?[1mob@ba?rn ([blink]x)" in shown


def blackboard_claim(key: str, room: str) -> Any:
    from meshllm.core.board.service import ClaimWish

    return ClaimWish(key, room=room)


def test_retracted_and_flagged_messages_are_marked(node: BoardNode) -> None:
    run("oops")
    node.arrive("twice", room=ROOM, flagged=True)
    mine = node.board.posts[0].id
    assert run("retract", mine[:8]).output.startswith(f"The text of {mine[:8]} is erased here")
    shown = run().output
    assert "(retracted)" in shown
    assert "oops" not in shown
    assert "broke the rules" in shown
    with pytest.raises(BoardRefused, match="of another node"):
        run("retract", node.board.posts[1].id)


def test_rooms_and_preview(node: BoardNode) -> None:
    assert run("rooms").output == "No room has a message.\n"
    node.arrive("x", ago=7200)
    node.arrive("y", room=ROOM)
    assert [line.split() for line in lines("rooms")] == [
        ["ROOM", "MESSAGES", "LAST"],
        ["org/repo", "1", "now"],
        ["the", "common", "room", "1", "2", "h", "ago"],
    ]
    done = run("preview", "a@b.org")
    assert (done.stdout, done.stderr) == ("[email]\n", "1 email would be replaced.\n")
    assert run("preview", "-", stdin="fine").stderr == "Nothing would be replaced.\n"
    assert json.loads(run("preview", "--json", "a@b.org").output) == {"text": "[email]", "replaced": "1 email"}
    assert len(node.board.posts) == 2


# -- claims


def test_claims_are_made_shown_renewed_and_released(node: BoardNode) -> None:
    done = run("claim", "issue-1", "--for", "20m")
    assert done.output.startswith("You hold issue-1 in org/repo until ")
    assert done.output.endswith("(20 min). It is an agreement, not a lock.\n")
    node.board.hold("issue-2", 90, room="other/repo", program="codex")
    shown = lines("claims")
    assert [line.split() for line in shown[:2]] == [
        ["KEY", "WHO", "ROOM", "SINCE", "ENDS", "IN"],
        ["issue-1", "ann@attic", "*", "org/repo", "now", "20", "min"],
    ]
    assert shown[-1] == "1 claim in other rooms: --all shows them."
    assert "bob@barn (codex)" in run("claims", "--all").output
    assert [claim["key"] for claim in json.loads(run("claims", "--json").output)["claims"]] == ["issue-1"]
    assert "(2 h)" in run("renew", "issue-1", "--for", "2h").output
    assert run("release", "issue-1").output == "Your claim of issue-1 in org/repo has ended.\n"
    assert lines("claims")[0] == "No claims in org/repo."


def test_a_claim_that_is_held_fails_with_who_and_how_long(node: BoardNode) -> None:
    node.board.hold("issue-2", 600, room=ROOM)
    with pytest.raises(EnvironmentFailure, match=r"issue-2 in org/repo is held by bob@barn: claimed .* ends in 10 min"):
        run("claim", "issue-2")
    done = CliRunner().invoke(entry.app, ["blackboard", "claim", "issue-2", "--json"])
    assert (done.exit_code, json.loads(done.output)["holder"]["name"]) == (1, "bob")
    for op in ("renew", "release"):
        with pytest.raises(EnvironmentFailure, match="You have no claim of issue-3") as caught:
            run(op, "issue-3")
        assert "mesh-llm blackboard claim" in caught.value.advice


# -- what the node says


def test_errors_say_what_to_do(node: BoardNode, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> None:
    node.board.off = "This node was started with --no-blackboard."
    for words in ((), ("text",), ("--search", "x"), ("claims",), ("claim", "k"), ("rooms",), ("preview", "x")):
        with pytest.raises(BoardOff, match="--no-blackboard") as off:
            run(*words)
        assert "without --no-blackboard" in off.value.advice
    node.board.off = ""
    for _ in range(ENTRIES_AT_ONCE):
        run("text")
    with pytest.raises(BoardRate):
        run("text")
    with pytest.raises(NotRunning, match=str(unused_tcp_port)):
        run("--port", str(unused_tcp_port))
    node.stop()
    with pytest.raises(NotRunning, match="No mesh-llm is running") as none:
        run("text")
    assert "Start one" in none.value.advice
    node.start(with_token=False)
    for words in ((), ("text",)):
        with pytest.raises(EnvironmentFailure, match="for its owner only"):
            run(*words)


@pytest.mark.parametrize(
    "answer",
    [
        "[]",
        "{}",
        "null",
        "x",
        '{"posts": [{}], "more": 0, "cursor": ""}',
        '{"posts": 5, "more": 0, "cursor": ""}',
        '{"posts": ["x"], "more": 0, "cursor": ""}',
    ],
)
def test_an_answer_that_is_no_page_is_an_error(node: BoardNode, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr("meshllm.cli.board_calls.ask", lambda *_, **__: (200, answer.encode()))
    with pytest.raises(NotRunning, match="not a mesh-llm console"):
        run()


def test_exit_codes(node: BoardNode) -> None:
    def code(*words: str) -> int:
        command = [sys.executable, "-P", "-m", "meshllm.cli.program", "blackboard", *words]
        return subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False).returncode

    node.board.hold("held", 600, room=ROOM)
    assert [code(), code("claim", "held"), code("clams"), code("--limit", "x")] == [0, 1, 2, 2]


# -- following


def following(*words: str) -> subprocess.Popen[str]:
    """`mesh-llm blackboard --follow`, as a process."""
    command = [sys.executable, "-P", "-m", "meshllm.cli.program", "blackboard", "--follow", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_follow_shows_news_over_a_restart_of_the_node_until_ctrl_c(node: BoardNode) -> None:
    node.arrive("before", room=ROOM)
    process = following()
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert [process.stdout.readline() for _ in range(3)][2] == "  before\n"
        node.arrive("not of this room")
        node.arrive("now", room=ROOM)
        assert [process.stdout.readline() for _ in range(2)][1] == "  now\n"
        node.stop()
        assert "Waiting for it; Ctrl-C ends this." in process.stderr.readline()
        node.arrive("meanwhile", room=ROOM)
        node.start()
        assert process.stderr.readline() == "mesh-llm: The node is there again.\n"
        assert [process.stdout.readline() for _ in range(2)][1] == "  meanwhile\n"
        node.arrive("after", room=ROOM)
        assert [process.stdout.readline() for _ in range(2)][1] == "  after\n"
        os.kill(process.pid, signal.SIGINT)
        rest = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, rest) == (0, ("", ""))


def test_follow_writes_one_json_object_per_message(node: BoardNode) -> None:
    node.arrive("one", room=ROOM)
    process = following("--json")
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["text"] == "one"
        node.arrive("two\nlines", room=ROOM)
        assert json.loads(process.stdout.readline())["text"] == "two\nlines"
    finally:
        process.kill()
        process.communicate()


class Pages:
    """Answers with these pages and errors, one after the other, and ends with KeyboardInterrupt."""

    def __init__(self, *answers: dict[str, Any] | MeshError) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, object]] = []

    def __call__(self, query: Any, within: float) -> dict[str, Any]:
        self.asked.append(dict(query))
        if not self.answers:
            raise KeyboardInterrupt
        answer = self.answers.pop(0)
        if isinstance(answer, MeshError):
            raise answer
        return answer


def page(cursor: str, *ids: str, more: int = 0) -> dict[str, Any]:
    return {"posts": [{"id": each} for each in ids], "more": more, "cursor": cursor}


def test_follower_shows_each_message_once_and_waits_longer_each_time() -> None:
    away = NotRunning("No mesh-llm answers on port 1.")
    pages = Pages(
        page("2", "b"), away, away, away, page("9", "c", "b", "a"), BoardRefused("old"), page("x", "d", "c", more=3)
    )
    shown: list[str] = []
    said: list[str] = []
    pauses: list[float] = []
    follower = Follower(pages, lambda post: shown.append(post["id"]), said.append, pauses.append)
    with pytest.raises(KeyboardInterrupt):
        follower.run(page("1", "a"))
    assert shown == ["b", "c", "d"]
    assert pauses == [0.5, 1.0, 2.0]
    assert [text.split(".")[0] for text in said] == [
        "No mesh-llm answers on port 1", "The node is there again", "3 older messages are not shown",
    ]  # fmt: skip
    assert [query.get("after") for query in pages.asked] == ["1", "2", "2", "2", "2", "9", None, "x"]


def test_follower_ends_when_the_blackboard_is_off() -> None:
    follower = Follower(Pages(BoardOff("It is off.")), print, print, print)
    with pytest.raises(BoardOff):
        follower.run(page("1"))
