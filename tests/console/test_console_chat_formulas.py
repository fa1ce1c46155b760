"""Formulas in answers: KaTeX from the page's own files, within bounds, beside money and code."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.console.chatting import ChatRig, answers, ask, chat_rig, ready
from tests.console.conftest import Visitor, serious

FORMULAS = r"""The energy is $E = mc^2$, and \(a_1 * b_1 * c_1\) stays as it is.

$$
\int_{0}^{\infty} e^{-x^2}\,dx = \frac{\sqrt{\pi}}{2}
$$

- In a list \[ \vec{v} = \begin{pmatrix} 1 \\ 2 \end{pmatrix} \] with more text.

\[
\overbrace{x + y}^{2} \fcolorbox{red}{yellow}{$z$} \color{blue}{c} \pmb{p} \cancel{5} \widehat{abc} \tag{1}
\]

| a | b |
|---|---|
| $x_1$ | $\alpha$ |
"""
PLAIN = r"""It costs $5 or $10, not US$20 and A$30, up to $1,000/month vs $2,000/month.
From $5 to 10$. **$7** and **$8**. `$x$ and \(y\)` and $HOME/$USER. A price of \$9.

```tex
$$ \frac{1}{2} $$ and $x$
```

    $indented$
"""
HOSTILE = r"""$\href{javascript:document.title='owned'}{x}$ $\includegraphics{https://example.org/x.png}$
$\url{https://example.org}$
$\htmlStyle{position: fixed; inset: 0}{x}$ $\htmlData{a=b}{x}$ $\htmlClass{toast}{x}$ $\htmlId{app}{x}$
$\def\a{\a\a}\a$ $\newcommand{\b}{\b\b}\b$ $\gdef\c{x}\c$ $\rule{1000000em}{1000000em}$
$<img src=x onerror="document.title='owned'">$
$\text{</span><script>document.title='owned'</script>}$ $\text{" style="position: fixed}$ $\unknown{1}$ $\frac{1$"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatRig]:
    """A node with a scripted backend."""
    with chat_rig(tmp_path_factory.mktemp("formulas")) as made:
        yield made


@pytest.fixture
def chat(rig: ChatRig, visitor: Visitor) -> Page:
    """The chat."""
    rig.backend.reset()
    return ready(visitor.open(rig.url, rig.node.token))


def answer(rig: ChatRig, page: Page, text: str) -> None:
    """Let the model answer with `text`."""
    rig.backend.text = text
    ask(page, "Show me")


def test_formulas_are_drawn_with_styles_and_own_typefaces(rig: ChatRig, chat: Page, visitor: Visitor) -> None:
    answer(rig, chat, FORMULAS)
    found = answers(chat).locator(".math")
    expect(found).to_have_count(7)
    expect(answers(chat).locator(".math .katex")).to_have_count(7)
    expect(answers(chat).locator(".math.display .katex-display")).to_have_count(3)
    expect(answers(chat).locator("table .katex")).to_have_count(2)
    # For screen readers.
    expect(found.first.locator("math annotation")).to_have_text("E = mc^2")
    # Styles are set although the content security policy forbids style attributes in HTML.
    expect(answers(chat).locator(".katex .katex-strut").first).to_have_attribute("style", re.compile("^height: "))
    chat.evaluate("document.fonts.ready")
    typefaces = [url for url in visitor.requested if "KaTeX" in url]
    assert typefaces
    assert all(url.startswith(rig.node.console_url) and ".woff2" in url for url in typefaces)
    width = "document.querySelector('.katex svg').getBoundingClientRect().width"
    assert chat.evaluate(width) > 5, "roots and braces have a width"


def test_katex_is_loaded_with_the_first_formula(rig: ChatRig, chat: Page, visitor: Visitor) -> None:
    answer(rig, chat, PLAIN)
    assert not any("katex" in url.lower() for url in visitor.requested)
    answer(rig, chat, "$x$")
    expect(answers(chat).locator(".katex")).to_have_count(1)
    assert any("katex" in url for url in visitor.requested)


def test_money_variables_and_code_are_no_formulas(rig: ChatRig, chat: Page) -> None:
    answer(rig, chat, PLAIN)
    expect(answers(chat).locator(".math")).to_have_count(0)
    first = answers(chat).locator(".prose p").first
    expect(first).to_contain_text("It costs $5 or $10, not US$20 and A$30, up to $1,000/month vs $2,000/month.")
    expect(first).to_contain_text("From $5 to 10$. $7 and $8. $x$ and \\(y\\) and $HOME/$USER. A price of $9.")
    expect(answers(chat).get_by_role("region", name="Code in tex")).to_have_text("$$ \\frac{1}{2} $$ and $x$")


def test_hostile_formulas_load_and_run_nothing(rig: ChatRig, chat: Page) -> None:
    answer(rig, chat, "$x$\n\n" + HOSTILE)
    expect(answers(chat).locator(".katex").first).to_be_visible()
    expect(chat).not_to_have_title("owned")
    for forbidden in ("a", "img", "script", "form", "iframe", "[onerror]", "#app", ".toast", "[data-style]"):
        expect(answers(chat).locator(f".math {forbidden}")).to_have_count(0)
    fixed = (
        "[...document.querySelectorAll('.math *')].filter((one) => getComputedStyle(one).position === 'fixed').length"
    )
    assert chat.evaluate(fixed) == 0
    # Shown as their source.
    for source in ("\\def\\a{\\a\\a}\\a", "\\newcommand{\\b}{\\b\\b}\\b", "\\unknown{1}", "\\frac{1"):
        expect(answers(chat).locator(".math.wrong", has_text=source)).to_have_count(1)
    # The rule is cut to 20 em.
    height = (
        "Math.max(...[...document.querySelectorAll('.katex-html')].map((one) => one.getBoundingClientRect().height))"
    )
    assert chat.evaluate(height) < 600


def test_large_formulas_are_bounded(rig: ChatRig, chat: Page) -> None:
    answer(rig, chat, "$x$")
    expect(answers(chat).locator(".katex")).to_have_count(1)
    nested = "\\frac{1}{" * 300 + "x" + "}" * 300
    wide = "x_1" * 1300  # draws more than is allowed: shown as its source
    many = " ".join(f"$x_{{{number}}}$" for number in range(400))
    long = "$" + "x+" * 3000 + "x$"
    began = time.monotonic()
    answer(rig, chat, f"${nested}$\n\n${wide}$\n\n{long}\n\n{many}")
    expect(answers(chat).nth(1).locator(".math.wrong", has_text=wide)).to_have_count(1)
    expect(answers(chat).nth(1).locator(".katex")).not_to_have_count(0)
    assert chat.evaluate("document.querySelectorAll('.katex *').length") < 60_000
    assert time.monotonic() - began < 30, "the page stays responsive"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_formulas_pass_axe_and_fit_a_phone(rig: ChatRig, visit: Callable[..., Visitor], axe: str, scheme: str) -> None:
    rig.backend.reset()
    visitor = visit(color_scheme=scheme, bypass_csp=True, viewport={"width": 390, "height": 760}, is_mobile=True)
    page = ready(visitor.open(rig.url, rig.node.token))
    answer(rig, page, FORMULAS + "\n\n$$" + " + ".join(f"x_{{{number}}}" for number in range(60)) + "$$")
    expect(answers(page).locator(".katex")).to_have_count(8)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate(axe)
    assert serious(page) == []
