"""The Blackboard view in a real browser: threads, filters, claims, posting, retracting, live updates, hostile texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from playwright.sync_api import Locator, Page, expect

from meshllm.web.http.access_control import AccessPolicy
from tests.console.conftest import Visitor, serious
from tests.console.meshes import Stage, mesh_of, staged, with_board
from tests.lan_address import lan_address
from tests.local_board import unix_now

PHONE = {"viewport": {"width": 375, "height": 720}, "is_mobile": True, "has_touch": True}
KEY = "key-of-a-board"
SECRET = "ghp_abcdefghijklmnopqrstuvwxyz0123456789"
# A change is shown, or was not, after so many ms.
SETTLED_MS = 2500


def board_of(count: int) -> Stage:
    """A node of a mesh of three with a blackboard of `count` messages."""
    return with_board(mesh_of(3), count)


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A board of nine messages: seven threads, of which one has two replies."""
    made = board_of(9)
    with staged(made):
        yield made


def opened(stage: Stage, visitor: Visitor, place: str = "", token: bool = True) -> Page:
    address = f"{stage.url}/#/blackboard{place}"
    page = visitor.open(address) if token else visitor.open(address, token="")
    expect(page.get_by_role("heading", name="Blackboard", exact=True)).to_be_visible()
    return page


def threads(page: Page) -> Locator:
    return page.locator(".threads > .thread")


def message(page: Page, text: str) -> Locator:
    return page.get_by_role("article").filter(has_text=text)


def box(page: Page) -> Locator:
    return page.get_by_role("textbox", name="New message")


def scroll(page: Page) -> float:
    return float(page.locator(".page").evaluate("part => part.scrollTop"))


def test_view_lists_threads_with_replies_folded_under_them(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    expect(threads(page)).to_have_count(7)
    expect(page.locator(".head")).to_contain_text("9 messages in 3 rooms")
    first = threads(page).first
    expect(first).to_contain_text("A ping every 20 s helps. (6)")
    expect(first).not_to_contain_text("Thanks, that was it.")
    fold = first.get_by_role("button", name="2 replies · the last of owner@workbench")
    expect(fold).to_have_attribute("aria-expanded", "false")
    fold.click()
    replies = first.get_by_role("list", name="Replies").get_by_role("listitem")
    expect(replies).to_have_count(2)
    expect(replies.first).to_contain_text("It needs two of them")
    expect(replies.last).to_contain_text("answers ben@birch")
    first.get_by_role("button", name="2 replies").click()
    expect(replies).to_have_count(0)
    expect(threads(page).last).to_contain_text("8 min ago")


def test_rooms_are_links_with_counts_and_filter(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    rooms = page.get_by_role("navigation", name="Rooms")
    expect(rooms.get_by_role("link")).to_have_text(["All rooms 9", "acme/engine 5", "common room 2", "acme/site 2"])
    rooms.get_by_role("link", name="common room").click()
    expect(threads(page)).to_have_count(2)
    assert page.url.endswith("#/blackboard/room%3A")
    rooms.get_by_role("link", name="acme/site").click()
    expect(threads(page)).to_have_count(2)
    expect(rooms.get_by_role("link", name="acme/site")).to_have_attribute("aria-current", "true")
    page.go_back()
    page.go_back()
    expect(threads(page)).to_have_count(7)


def test_filters_by_kind_author_and_name(stage: Stage, visitor: Visitor) -> None:
    stage.board.arrive("for you", to=("owner",), ago=30)
    page = opened(stage, visitor)
    filters = page.get_by_role("group", name="Filters")
    filters.get_by_label("Kind").select_option("question")
    expect(threads(page)).to_have_count(1)
    expect(threads(page)).to_contain_text("QUESTION: who knows")
    filters.get_by_label("Kind").select_option("")
    filters.get_by_label("Author or node").fill("birch")
    expect(message(page, "@birch")).to_have_count(3)
    expect(message(page, "@amber")).to_have_count(0)
    filters.get_by_label("Author or node").fill("")
    filters.get_by_label("Names me").check()
    expect(threads(page)).to_have_count(1)
    expect(threads(page)).to_contain_text("for you")
    filters.get_by_label("Kind").select_option("tip")
    expect(page.locator(".messages")).to_contain_text("No message matches.")


def test_opened_thread_does_not_follow_into_another_room(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    threads(page).first.get_by_role("button", name="2 replies").click()
    expect(page.get_by_role("article")).to_have_count(9)
    page.get_by_role("navigation", name="Rooms").get_by_role("link", name="acme/site").click()
    expect(page.get_by_role("article")).to_have_count(2)
    expect(threads(page).filter(has_text="acme/engine")).to_have_count(0)
    page.get_by_role("navigation", name="Rooms").get_by_role("link", name="All rooms").click()
    expect(page.get_by_role("article")).to_have_count(7)


def test_reply_without_its_first_message_leads_to_the_thread(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    page.get_by_label("Author or node").fill("workbench")
    expect(threads(page).first).to_contain_text("A reply in a thread:")
    threads(page).first.get_by_role("link", name="a thread").click()
    expect(page.get_by_role("article")).to_have_count(3)
    expect(page.get_by_role("article").first).to_contain_text("(6)")
    page.get_by_role("link", name="All messages").click()
    expect(page.get_by_role("navigation", name="Rooms")).to_be_visible()


def test_search_lists_the_best_first_and_says_that_the_board_has_changed(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    page.get_by_label("Search the messages").fill("parser tunnel NAT")
    expect(page.get_by_role("list", name="Found messages")).to_be_visible()
    found = threads(page)
    expect(found.first).to_contain_text("tunnel")
    expect(found.last).to_contain_text("parser")
    count = found.count()
    stage.board.arrive("another parser")
    page.get_by_role("button", name="The board has changed. Search again").click()
    expect(found).to_have_count(count + 1)
    page.get_by_label("Search the messages").fill("zebra")
    expect(page.locator(".messages")).to_contain_text("No message matches.")
    page.get_by_label("Search the messages").fill("")
    expect(found).to_have_count(8)


def test_claims_count_down_and_end(stage: Stage, visitor: Visitor) -> None:
    stage.board.hold("issue-16", 754, room="acme/engine")
    stage.board.hold("short", 4, name="owner", node="workbench", mine=True)
    page = opened(stage, visitor)
    claims = page.get_by_role("region", name="Who is on what").get_by_role("listitem")
    expect(claims).to_have_count(2)
    expect(claims.last).to_contain_text("issue-16")
    expect(claims.last).to_contain_text("ann@amber · claude-code · acme/engine")
    left = claims.last.get_by_role("timer")
    expect(left).to_have_text(re.compile(r"^12:\d\d left$"))
    before = left.inner_text()
    expect(claims).to_have_count(1)
    assert left.inner_text() != before
    expect(claims).to_contain_text("issue-16")
    stage.board.hold("new", 7200)
    expect(claims.last).to_contain_text("2 h 00 min left")


def test_post_is_shown_and_the_box_stays_focused(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    expect(page.get_by_label("Room", exact=True)).to_be_hidden()
    box(page).fill("QUESTION: does it work?")
    page.get_by_label("Room", exact=True).fill("acme/new")
    page.get_by_label("To", exact=True).fill("@ann, ben")
    page.get_by_role("button", name="Post", exact=True).click()
    shown = message(page, "does it work?")
    expect(shown).to_contain_text("question")
    expect(shown).to_contain_text("to ann, ben")
    expect(shown).to_contain_text("acme/new")
    expect(box(page)).to_be_focused()
    expect(box(page)).to_have_value("")
    expect(page.get_by_role("status").filter(has_text="Posted in acme/new.")).to_be_visible()
    assert stage.board.posts[-1].kind == "question"


def test_post_by_keyboard_with_a_chosen_kind(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor, "/room%3Aacme%2Fsite")
    box(page).focus()
    page.keyboard.type("first line")
    page.keyboard.press("Enter")
    page.keyboard.type("second line")
    page.get_by_label("Kind").first.select_option("tip")
    box(page).focus()
    page.keyboard.press("Control+Enter")
    expect(message(page, "second line")).to_be_visible()
    made = stage.board.posts[-1]
    assert (made.text, made.kind, made.room) == ("first line\nsecond line", "tip", "acme/site")


def test_preview_shows_what_is_replaced_only_if_something_is(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    box(page).fill("nothing secret")
    page.wait_for_timeout(SETTLED_MS)
    assert stage.board.asked.count("preview") == 1
    expect(page.locator(".preview")).to_have_count(0)
    box(page).fill(f"my key is {SECRET}")
    expect(page.locator(".preview")).to_contain_text("Posting replaces: 1 github-token.")
    expect(page.get_by_role("region", name="The message as it would be posted")).to_have_text(
        "my key is [github-token]"
    )
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status").filter(has_text="Replaced: 1 github-token.")).to_be_visible()
    expect(message(page, "my key is [github-token]")).to_be_visible()
    expect(page.locator(".preview")).to_have_count(0)
    assert SECRET not in page.content()


def test_preview_is_asked_for_once_for_what_is_typed_quickly(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    box(page).press_sequentially("typed letter by letter", delay=20)
    page.wait_for_timeout(SETTLED_MS)
    assert 1 <= stage.board.asked.count("preview") <= 3


def test_reply_is_shown_in_its_thread_and_gets_the_focus(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    target = message(page, "@birch").first
    text = target.locator(".text").inner_text()
    target.get_by_role("button", name="Reply to ben@birch").click()
    reply = page.get_by_role("textbox", name="Reply to ben@birch")
    expect(reply).to_be_focused()
    page.keyboard.type("an answer")
    page.get_by_role("button", name="Reply", exact=True).click()
    made = message(page, "an answer")
    expect(made).to_be_focused()
    expect(reply).to_have_count(0)
    thread = threads(page).filter(has_text="an answer")
    expect(thread).to_contain_text(text)
    expect(thread.get_by_role("button", name="1 reply")).to_have_attribute("aria-expanded", "true")
    posted = stage.board.posts[-1]
    assert [post.text for post in stage.board.posts if post.id == posted.reply_to] == [text]
    assert posted.to == ("ben",)


def test_half_written_texts_survive_updates_and_other_views(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    box(page).fill("half a mess")
    target = message(page, "@birch").first
    target.get_by_role("button", name="Reply to ben@birch").click()
    reply = page.get_by_role("textbox", name="Reply to ben@birch")
    expect(reply).to_be_focused()
    page.keyboard.type("half an ans")
    top = reply.bounding_box()
    for number in range(5):
        stage.board.arrive(f"news {number}")
        page.wait_for_timeout(300)
    expect(page.get_by_role("button", name="Show 5 new messages")).to_be_visible()
    expect(reply).to_have_value("half an ans")
    expect(reply).to_be_focused()
    assert reply.bounding_box() == top
    page.keyboard.type("wer")
    expect(reply).to_have_value("half an answer")
    page.get_by_role("link", name="Nodes", exact=True).click()
    page.get_by_role("link", name="Blackboard", exact=True).click()
    expect(box(page)).to_have_value("half a mess")
    expect(reply).to_have_value("half an answer")
    expect(reply).not_to_be_focused()
    reply.focus()
    page.keyboard.press("Escape")
    expect(reply).to_have_count(0)
    expect(target).to_be_focused()
    target.get_by_role("button", name="Reply to ben@birch").click()
    expect(reply).to_have_value("half an answer")
    page.get_by_role("button", name="Cancel").click()
    target.get_by_role("button", name="Reply to ben@birch").click()
    expect(reply).to_have_value("")


def test_news_are_shown_at_once_at_the_top_and_wait_for_a_reader_further_down(visitor: Visitor) -> None:
    with staged(board_of(60)) as stage:
        page = opened(stage, visitor)
        expect(threads(page)).to_have_count(40)
        stage.board.arrive("news at the top")
        expect(threads(page).first).to_contain_text("news at the top")
        page.locator(".page").evaluate("part => part.scrollTo(0, 1500)")
        seen = threads(page).nth(12)
        before = seen.bounding_box()
        stage.board.arrive("news for later")
        button = page.get_by_role("button", name="Show 1 new message")
        expect(button).to_be_in_viewport()
        assert seen.bounding_box() == before
        assert scroll(page) == 1500
        button.click()
        expect(threads(page).first).to_contain_text("news for later")
        assert scroll(page) == 0
        expect(button).to_have_count(0)


def test_update_asks_for_what_is_new_and_keeps_the_other_messages_untouched(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    expect(threads(page)).to_have_count(7)
    page.evaluate("document.querySelectorAll('.message').forEach((one) => { one.dataset.old = 'yes' })")
    page.evaluate(
        "window.changes = []; new MutationObserver((all) => changes.push(...all.flatMap((one) => "
        "[...one.removedNodes].filter((node) => node.nodeType === 1).map((node) => node.outerHTML))))"
        ".observe(document.querySelector('.threads'), { childList: true, subtree: true })"
    )
    stage.board.arrive("one more")
    expect(threads(page)).to_have_count(8)
    expect(page.locator(".message[data-old]")).to_have_count(7)
    assert page.evaluate("changes") == []
    assert "news" in stage.board.asked


def test_message_that_others_retract_is_erased_here(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    post = next(post for post in stage.board.posts if post.node == "amber")
    shown = page.locator(f"[data-post='{post.id}']")
    expect(shown).to_contain_text(post.text[:20])
    stage.board.erase(post.id)
    expect(shown).to_have_count(0, timeout=SETTLED_MS)
    assert post.text not in page.content()


def test_retracted_message_of_an_opened_thread_keeps_its_place(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    thread = threads(page).first
    thread.get_by_role("button", name="2 replies").click()
    reply = next(post for post in stage.board.posts if post.text.startswith("It needs two"))
    stage.board.erase(reply.id)
    shown = page.locator(f"[data-post='{reply.id}']")
    expect(shown).to_contain_text("This message was retracted", timeout=SETTLED_MS)
    expect(shown.get_by_role("button")).to_have_count(0)
    assert reply.text not in page.content()
    root = next(post for post in stage.board.posts if post.id == reply.thread)
    stage.board.erase(root.id)
    expect(thread.get_by_role("article").first).to_contain_text("This message was retracted")
    assert root.text not in page.content()


def test_thread_that_is_gone_is_said(stage: Stage, visitor: Visitor) -> None:
    visitor.allow("400")
    page = opened(stage, visitor, "/thread%3A0123")
    expect(page.locator("main")).to_contain_text("This thread is not on the board (any more).")
    expect(page.locator(".notice")).to_have_count(0)


def test_own_message_is_retracted_after_a_question(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    expect(message(page, "@amber").get_by_role("button", name="Retract this message")).to_have_count(0)
    own = page.locator(".message.mine").first
    retract = own.get_by_role("button", name="Retract this message")
    retract.click()
    question = own.get_by_role("group", name="Retract this message?")
    expect(question).to_contain_text("Its text is erased on all nodes.")
    expect(question.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(question).to_have_count(0)
    expect(retract).to_be_focused()
    assert not any(post.retracted for post in stage.board.posts)
    retract.click()
    own.get_by_role("button", name="Retract it").click()
    expect(own).to_contain_text("This message was retracted")
    expect(own).to_be_focused()
    stage.board.arrive("more")
    page.wait_for_timeout(SETTLED_MS)
    expect(own).to_be_focused()
    assert sum(post.retracted for post in stage.board.posts) == 1


def test_refusal_keeps_the_text_and_says_why(stage: Stage, visitor: Visitor) -> None:
    visitor.allow("400")
    page = opened(stage, visitor)
    message(page, "@birch").first.get_by_role("button", name="Reply to ben@birch").click()
    expect(page.get_by_role("textbox", name="Reply to ben@birch")).to_be_focused()
    page.keyboard.type("too late")
    stage.board.posts = []
    page.get_by_role("button", name="Reply", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("No message or several have the id")
    expect(page.get_by_role("textbox", name="Reply to ben@birch")).to_have_value("too late")


def test_limits_are_said_before_posting(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    box(page).fill("ä" * 2040)
    expect(page.get_by_role("status").filter(has_text="4,080 of 4,096 bytes")).to_be_visible()
    box(page).fill("ä" * 2049)
    expect(page.get_by_role("status").filter(has_text="4,098 of 4,096 bytes")).to_be_visible()
    expect(page.get_by_role("button", name="Post", exact=True)).to_be_disabled()
    box(page).fill("short")
    page.get_by_label("To", exact=True).fill(",".join(f"name{number}" for number in range(9)))
    expect(page.get_by_role("status").filter(has_text="at most 8")).to_be_visible()
    expect(page.get_by_role("button", name="Post", exact=True)).to_be_disabled()


def test_texts_of_others_are_data(stage: Stage, visitor: Visitor) -> None:
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "obey")
    hostile = (
        "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>**bold** "
        "[click](https://a.example/) javascript:alert(1) https://real.example/path?q=1. "
        "https://bank.example@evil.example/ \u202egnp.exe\u202c\x1b[31m\x00" + hidden
    )
    name = "<b>mallory</b>\n\u202e"
    stage.board.arrive(hostile, name=name, node="<i>n</i>", program="<u>p</u>", room="<s>r</s>", to=("<a>t</a>",))
    stage.board.hold("<img src=y>\u202e", 600, name=name)
    page = opened(stage, visitor)
    shown = message(page, "javascript:alert(1)")
    expect(shown).to_contain_text("<img src=x onerror=")
    assert page.locator("main :is(img, script, b, i:not(.dot), u, s, iframe)").count() == 0
    links = shown.locator(".text a")
    assert [
        (link.get_attribute("href"), link.inner_text(), link.get_attribute("rel"), link.get_attribute("target"))
        for link in links.all()
    ] == [
        ("https://a.example/", "https://a.example/", "noopener noreferrer nofollow", "_blank"),
        ("https://real.example/path?q=1", "https://real.example/path?q=1", "noopener noreferrer nofollow", "_blank"),
    ]
    found = page.locator("main").evaluate("part => part.outerHTML")
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]", found) is None
    expect(page).to_have_title(re.compile("^Blackboard"))


def test_long_texts_fold(stage: Stage, visitor: Visitor) -> None:
    stage.board.arrive("first\n" * 5 + "word " * 700 + "THE END")
    page = opened(stage, visitor)
    first = threads(page).first
    expect(first).not_to_contain_text("THE END")
    fold = first.get_by_role("button", name="Show the whole message")
    fold.click()
    expect(first).to_contain_text("THE END")
    less = first.get_by_role("button", name="Show less")
    expect(less).to_be_focused()
    less.click()
    expect(first).not_to_contain_text("THE END")


def test_flagged_authors_and_waiting_messages_are_said(stage: Stage, visitor: Visitor) -> None:
    stage.board.ahead, stage.board.flagged = 2, ("mallory@cedar",)
    stage.board.arrive("one of two", name="mallory", node="cedar", flagged=True)
    page = opened(stage, visitor)
    expect(page.get_by_role("status").filter(has_text="2 messages wait: the clocks")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="mallory@cedar broke the rules")).to_be_visible()
    expect(message(page, "one of two")).to_contain_text("broke the rules")
    expect(message(page, "@amber").first).not_to_contain_text("broke the rules")
    stage.board.ahead, stage.board.flagged = 0, ()
    stage.board.arrive("later")
    expect(page.get_by_role("status").filter(has_text="messages wait")).to_have_count(0)


def test_empty_board_shows_commands_to_begin(visitor: Visitor) -> None:
    with staged(board_of(0)) as stage:
        page = opened(stage, visitor)
        begin = page.get_by_role("region", name="No messages yet")
        commands = begin.locator("pre")
        expect(commands).to_have_text(
            [
                'mesh-llm blackboard "STATUS: trying the blackboard"',
                "mesh-llm blackboard install-skill",
                "mesh-llm blackboard --mcp",
            ]
        )
        box(page).fill("the first one")
        page.keyboard.press("Control+Enter")
        expect(threads(page)).to_have_count(1)
        expect(begin).to_have_count(0)
        expect(box(page)).to_be_focused()


def test_board_that_is_off_says_why_and_comes_back(stage: Stage, visitor: Visitor) -> None:
    stage.board.off = "This mesh is public: start the node with --blackboard."
    page = opened(stage, visitor)
    expect(page.get_by_role("heading", name="The blackboard is off")).to_be_visible()
    expect(page.locator("main")).to_contain_text(stage.board.off)
    expect(box(page)).to_have_count(0)
    stage.board.off = ""
    stage.board.arrive("back")
    expect(message(page, "back")).to_be_visible()


def test_visitor_without_the_token_sees_nothing_of_the_board(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor, token=False)
    expect(page.get_by_role("heading", name="The blackboard is shown to the node’s owner")).to_be_visible()
    page.wait_for_timeout(SETTLED_MS)
    assert not [url for url in visitor.requested if "/api/blackboard" in url]
    assert "parser" not in page.content()


def test_other_device_reads_only(visit: Callable[..., Visitor]) -> None:
    stage = board_of(9)
    stage.policy, stage.hosts = AccessPolicy(KEY), ("0.0.0.0",)
    stage.board.hold("issue-16", 754)
    with staged(stage):
        visitor = visit(**PHONE)
        page = visitor.open(f"http://{lan_address()}:{stage.port}/#key={KEY}")
        page.get_by_role("link", name="Blackboard", exact=True).click()
        expect(threads(page)).to_have_count(7)
        expect(page.locator("main")).to_contain_text("From this device the board can be read only.")
        threads(page).first.get_by_role("button", name="2 replies").click()
        expect(threads(page).first.get_by_role("article")).to_have_count(3)
        expect(page.get_by_label("Names owner")).to_be_visible()
        expect(page.get_by_role("button", name=re.compile("Reply|Retract|Post"))).to_have_count(0)
        expect(page.locator("textarea")).to_have_count(0)
        stage.board.arrive("news for the phone")
        expect(page.locator("main")).to_contain_text(re.compile("news for the phone|Show 1 new message"))
        sent = [url for url in visitor.requested if "/api/blackboard/" in url]
        assert sent
        assert not [url for url in sent if re.search("/(post|retract|preview|claim)$", url)]


def test_changed_key_forgets_the_board(visit: Callable[..., Visitor]) -> None:
    stage = board_of(9)
    stage.policy, stage.hosts = AccessPolicy(KEY), ("0.0.0.0",)
    visitor = visit(**PHONE)
    visitor.allow("401")
    visitor.allow("ERR_")
    with staged(stage):
        page = visitor.open(f"http://{lan_address()}:{stage.port}/#key={KEY}")
        page.get_by_role("link", name="Blackboard", exact=True).click()
        expect(threads(page)).to_have_count(7)
    stage.policy = AccessPolicy("another")
    with staged(stage):
        expect(page.get_by_role("heading", name="Enter the API key of this node")).to_be_visible()
        assert "parser" not in page.content()
        page.get_by_label("Key", exact=True).fill("another")
        page.get_by_role("button", name="Open").click()
        expect(threads(page)).to_have_count(7)


def test_lost_daemon_keeps_the_messages_and_takes_no_new_ones(visitor: Visitor) -> None:
    visitor.allow("ERR_")
    stage = board_of(5)
    with staged(stage):
        page = opened(stage, visitor)
        expect(threads(page)).to_have_count(3)
        box(page).fill("kept")
    expect(page.get_by_role("alert").first).to_contain_text("does not answer")
    expect(threads(page)).to_have_count(3)
    expect(box(page)).to_have_count(0)
    stage.board.arrive("written meanwhile")
    with staged(stage):
        expect(message(page, "written meanwhile")).to_be_visible()
        expect(box(page)).to_have_value("kept")


def test_clock_of_the_node_counts(visitor: Visitor) -> None:
    """The times are those of the node, whatever the clock of the device says."""
    with staged(board_of(3)) as stage:
        visitor.page.clock.install(time=unix_now() + 7200)
        stage.board.hold("issue-16", 754)
        page = opened(stage, visitor)
        visitor.page.clock.run_for(1500)
        expect(page.get_by_role("timer")).to_have_text(re.compile(r"^12:\d\d left$"))
        expect(threads(page).first).to_contain_text("2 min ago")


def test_board_of_5000_messages_stays_bounded(visitor: Visitor) -> None:
    stage = board_of(5000)
    visitor.page.add_init_script(
        "window.tasks = []; new PerformanceObserver((list) => "
        "tasks.push(...list.getEntries().map((one) => one.duration))).observe({ type: 'longtask' })"
    )
    with staged(stage):
        page = opened(stage, visitor)
        expect(threads(page)).to_have_count(40)
        expect(page.locator(".head")).to_contain_text("5,000 messages in 3 rooms")
        assert page.locator("main *").count() < 2000
        for _ in range(3):
            page.get_by_role("button", name="Show 40 more threads").click()
        page.get_by_role("button", name=re.compile("Show .* more thread")).click()
        expect(page.locator("main")).to_contain_text("4,800 older messages not loaded.")
        page.get_by_role("button", name="Load older messages").click()
        expect(page.get_by_role("button", name="Show 40 more threads")).to_be_visible()
        box(page).fill("typed while messages arrive")
        for number in range(20):
            stage.board.arrive(f"news {number}")
            page.wait_for_timeout(50)
        expect(box(page)).to_have_value("typed while messages arrive")
        while page.get_by_role("button", name=re.compile("^Show .* more thread")).count() > 0:
            page.get_by_role("button", name=re.compile("^Show .* more thread")).click()
        expect(page.locator("main")).to_contain_text("Choose a room, a kind or an author, or search, to find them.")
        assert threads(page).count() <= 500
        assert len(page.evaluate("tasks.filter((one) => one > 1000)")) == 0


def test_many_rooms_and_claims_stay_bounded(visitor: Visitor) -> None:
    stage = board_of(0)
    for number in range(600):
        stage.board.arrive(f"message {number}", room=f"room-{number}", ago=number)
        stage.board.hold(f"key-{number}", 600 + number)
    with staged(stage):
        page = opened(stage, visitor)
        rooms = page.get_by_role("navigation", name="Rooms")
        expect(rooms.get_by_role("link")).to_have_count(13)
        rooms.get_by_role("button", name="188 more rooms").click()
        expect(rooms.get_by_role("link")).to_have_count(201)
        claims = page.get_by_role("region", name="Who is on what")
        expect(claims.get_by_role("listitem")).to_have_count(8)
        claims.get_by_role("button", name="Show 192 more").click()
        expect(claims.get_by_role("listitem")).to_have_count(200)
        page.goto(f"{stage.url}/#/blackboard/room%3Aroom-400")
        expect(rooms.locator("[aria-current]")).to_have_text("room-400 1")
        expect(threads(page)).to_have_count(1)
        expect(threads(page)).to_contain_text("message 400")
        expect(claims.get_by_role("listitem")).to_have_count(0)


@pytest.mark.parametrize("count", [0, 9])
def test_view_fits_a_phone_where_messages_are_read_and_answered(count: int, visit: Callable[..., Visitor]) -> None:
    stage = board_of(count)
    if count:
        stage.board.arrive(
            "https://a.example/" + "long" * 100, name="n" * 64, node="m" * 64, room="r" * 128, to=("t" * 64,)
        )
        stage.board.hold("k" * 200, 600, name="n" * 64)
    with staged(stage):
        page = opened(stage, visit(**PHONE))
        expect(page.locator(".thread, .begin").first).to_be_visible()
        if count:
            message(page, "@birch").first.get_by_role("button", name="Reply to ben@birch").tap()
            expect(page.get_by_role("textbox", name="Reply to ben@birch")).to_be_focused()
            page.keyboard.type("from a phone")
            expect(page.get_by_role("button", name="Reply", exact=True)).to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        wide = page.eval_on_selector_all(
            "main *:not(svg *)",
            "all => all.filter((one) => one.getBoundingClientRect().right > 376 && "
            "!one.closest('pre, .strip, .rooms, .writer')).map((one) => one.outerHTML.slice(0, 120))",
        )
        assert wide == []
        names = page.locator("header.side nav a span").all()
        boxes = [name.bounding_box() for name in names]
        for one, other in pairwise(boxes):
            assert one is not None
            assert other is not None
            assert one["x"] + one["width"] <= other["x"] + 1
        if count:
            page.get_by_role("button", name="Reply", exact=True).tap()
            expect(message(page, "from a phone")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_view_passes_axe(scheme: str, device: str, axe: str, visit: Callable[..., Visitor]) -> None:
    stage = board_of(9)
    stage.board.ahead, stage.board.flagged = 1, ("mallory@cedar",)
    stage.board.hold("issue-16", 100)
    stage.board.hold("docs", 3000, mine=True)
    stage.board.arrive("word " * 400, flagged=True, to=("ann",), kind="tip", program="codex")
    stage.board.erase(stage.board.posts[0].id)
    with staged(stage):
        options = PHONE if device == "phone" else {}
        page = opened(stage, visit(color_scheme=scheme, bypass_csp=True, **options))
        box(page).fill(f"key {SECRET} " + "x" * 3100)
        expect(page.locator(".preview")).to_be_visible()
        threads(page).nth(1).get_by_role("button", name="2 replies").click()
        page.locator(".message.mine").first.get_by_role("button", name="Retract this message").click()
        message(page, "@birch").first.get_by_role("button", name="Reply to ben@birch").click()
        page.evaluate(axe)
        assert serious(page) == []


def test_first_view_does_not_load_the_blackboard(visitor: Visitor) -> None:
    with staged(board_of(3)) as stage:
        page = visitor.open(stage.url)
        assert not [url for url in visitor.requested if "board-view" in url or "/api/blackboard" in url]
        page.get_by_role("link", name="Blackboard", exact=True).click()
        expect(threads(page)).to_have_count(1)
