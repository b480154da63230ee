"""The chat page in a real Chromium, end to end. GPTOSS_SCREENSHOTS names a folder for pictures of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
WAIT = 20_000  # ms
FUNCTION = {
    "name": "calculator",
    "description": "Evaluate an arithmetic expression.",
    "parameters": {
        "type": "object",
        "required": ["expression"],
        "properties": {"expression": {"type": "string", "description": "For example 12*34"}},
    },
}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        yield play.chromium.launch(executable_path=CHROMIUM, args=options)


@pytest.fixture(params=["light", "dark"])
def page(browser, address, request):
    width = 1280 if request.param == "light" else 390
    context = browser.new_context(
        color_scheme=request.param,
        viewport={"width": width, "height": 800},
        http_credentials={"username": "any", "password": "secret"},
        permissions=["clipboard-read", "clipboard-write"],
    )
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda sent: sent.url.startswith((address, "data:")) or page.problems.append(sent.url))
    page.goto(address)
    playwright.expect(page.locator("#model")).to_have_text("demo")
    yield page
    assert not page.problems
    context.close()


def picture(page, name):
    folder = os.environ.get("GPTOSS_SCREENSHOTS")
    if folder:
        size = page.viewport_size["width"]
        page.screenshot(path=Path(folder) / f"{name}-{size}.png")


def ask(page, text):
    page.fill("#input", text)
    page.keyboard.press("Enter")


def test_an_answer_is_streamed_with_its_thoughts_folded(page):
    picture(page, "empty")
    assert page.evaluate("document.activeElement.id") == "input"
    ask(page, "What is 12 + 30?")
    answer = page.locator("article.assistant")
    playwright.expect(answer.locator("> div").first).to_have_text("42", timeout=WAIT)
    playwright.expect(answer.locator(".facts")).to_contain_text("tokens/s", timeout=WAIT)
    assert not answer.locator("details div").is_visible()
    answer.locator("summary").click()
    assert answer.locator("details div").inner_text()
    answer.get_by_role("button", name="Copy").click()
    playwright.expect(answer.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "42"
    ask(page, "What is 1 + 1?")
    playwright.expect(page.locator("article.assistant .facts")).to_have_count(2, timeout=WAIT)
    picture(page, "answer")
    page.get_by_role("button", name="New chat").click()
    assert page.locator("article").count() == 0


def test_an_answer_can_be_stopped(page):
    # The server holds back what comes after the first event, so that there is something to stop.
    event = {"choices": [{"delta": {"content": "1, 2"}, "finish_reason": None}]}
    page.evaluate(
        """(line) => {
            window.fetch = async (_, {signal}) => new Response(new ReadableStream({start(controller) {
                controller.enqueue(new TextEncoder().encode(line));
                signal.onabort = () => controller.error(new DOMException("stopped", "AbortError"));
            }}));
        }""",
        f"data: {json.dumps(event)}\n\n",
    )
    ask(page, "count")
    playwright.expect(page.get_by_role("button", name="Stop")).to_be_visible()
    playwright.expect(page.locator("article.assistant > div").first).to_have_text("1, 2")
    page.keyboard.press("Escape")
    playwright.expect(page.locator(".facts")).to_contain_text("stopped")
    playwright.expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_a_call_is_shown_and_its_result_goes_back(page):
    page.get_by_role("button", name="Tools").click()
    page.fill("#tools", json.dumps([{"type": "function", "function": FUNCTION}]))
    page.get_by_role("button", name="Tools").click()
    ask(page, "What is 12 * 34?")
    card = page.locator(".call")
    playwright.expect(card.locator("h2")).to_have_text("Calls calculator", timeout=WAIT)
    playwright.expect(card.locator(".arguments")).to_contain_text('"12*34"', timeout=WAIT)
    field = card.get_by_label("Result of calculator")
    field.wait_for(timeout=WAIT)
    picture(page, "call")
    field.fill("408")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("article.assistant").last).to_contain_text("408", timeout=WAIT)
    playwright.expect(page.locator("article.assistant .facts")).to_have_count(2, timeout=WAIT)


def test_errors_are_said_in_words(page):
    page.get_by_role("button", name="Tools").click()
    page.fill("#tools", "{")
    ask(page, "hello")
    playwright.expect(page.locator("#tools-error")).to_contain_text("not valid JSON")
    assert page.input_value("#input") == "hello"  # nothing that was written is lost
    assert page.locator("article.user").count() == 0
    page.fill("#tools", '[{"type": "magic"}]')
    ask(page, "hello")
    playwright.expect(page.locator("#log .error").last).to_contain_text(
        "tools[0].type is 'magic'", timeout=WAIT
    )
    page.fill("#tools", "")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, body="{}"))
    ask(page, "hello")
    playwright.expect(page.locator("#log .error").last).to_contain_text("busy", timeout=WAIT)
    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "hello")
    playwright.expect(page.locator("#log .error").last).to_contain_text("cannot be reached", timeout=WAIT)
    assert page.input_value("#input") == "hello"
    assert page.locator("article.user").count() == 0
    picture(page, "errors")


def test_a_key_can_be_given(page):
    page.route("**/v1/**", lambda route: route.fulfill(status=401, json={"error": {"message": "no key"}}))
    ask(page, "What is 12 + 30?")
    playwright.expect(page.locator("#key")).to_be_visible(timeout=WAIT)
    picture(page, "key")
    page.unroute("**/v1/**")
    page.fill("#key", "secret")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.keyboard.press("Enter")
    assert sent.value.headers["authorization"] == "Bearer secret"
    playwright.expect(page.locator("article.assistant > div").first).to_have_text("42", timeout=WAIT)


def test_what_a_model_writes_is_never_html(page):
    text = "<img src=x onerror=alert(1)> **bold** `code`\n\n```\n<b>block</b>\n```\n\n- one\n- two"
    html = page.evaluate(
        """(text) => {
            const div = document.createElement("div");
            div.append(markdown(text));
            return div.innerHTML;
        }""",
        text,
    )
    assert html == (
        "<p>&lt;img src=x onerror=alert(1)&gt; <strong>bold</strong> <code>code</code></p>"
        "<pre><code>&lt;b&gt;block&lt;/b&gt;</code></pre><ul><li>one</li><li>two</li></ul>"
    )
