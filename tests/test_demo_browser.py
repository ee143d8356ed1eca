"""The web demo in headless Chromium, with real uploads, as `internvl-chat demo` serves it.

Needs Gradio, playwright (`pip install gradio playwright`) and Debian's `chromium`; skipped without them. Set
INTERNVL_CHAT_SCREENSHOTS to a folder to look at what the browser showed.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio.blocks")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no chromium", allow_module_level=True)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
WAIT = 120_000  # milliseconds, on a busy machine
# The command, with a note of every address that the server process connects to or looks up.
SERVER = """
import socket, sys
from internvl_chat.cli import main

notes = sys.argv.pop(1)
OWN = ("127.0.0.1", "::1", "localhost", "0.0.0.0", None)

def noted(function, host):
    def call(*arguments, **more):
        if host(*arguments) not in OWN:
            with open(notes, "a") as file:
                print(host(*arguments), file=file)
        return function(*arguments, **more)
    return call

def peer(self, address, *rest):
    return None if self.family == socket.AF_UNIX else address[0]

for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, noted(getattr(socket.socket, name), peer))
socket.getaddrinfo = noted(socket.getaddrinfo, lambda host, *rest, **more: host)
main()
"""


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A checkpoint that does not know its end mark: answers go on until they are stopped."""
    folder = tmp_path_factory.mktemp("demo") / "endless"
    folder.mkdir()
    for path in ROOT.iterdir():
        unwanted = ("generation_config.json", "special_tokens_map.json")
        if path.suffix in (".json", ".txt", ".safetensors") and path.name not in unwanted:
            shutil.copyfile(path, folder / path.name)
    for name, changes in (
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}),
        ("config.json", {"template": "phi3-chat"}),
    ):
        values = json.loads((folder / name).read_text())
        values.update(changes)
        if name == "config.json":
            values["llm_config"]["eos_token_id"] = None
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """`serve(*options)`: a running demo; its address, with the file that notes connections in `.notes`."""
    running = []

    def start(*options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder = tmp_path_factory.mktemp("server")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")}
        environment = {**inherited, "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1,localhost"}
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(folder / "notes"), "demo", "--port", str(port), *options],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        running.append((process, folder))
        for _ in range(600):
            if "The demo is at" in (folder / "log").read_text():
                return f"http://127.0.0.1:{port}/", folder
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        pytest.fail((folder / "log").read_text())

    yield start
    for process, folder in running:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (folder / "log").read_text()
        assert not (folder / "notes").exists(), (folder / "notes").read_text()  # it connected to nobody
        assert not list(folder.glob("internvl-chat-demo-*"))  # and the uploads are gone


@pytest.fixture(scope="module")
def demo(serve):
    return serve("--max-new-tokens", "64", "--max-upload", "1")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """`visit(address, **options of a browser context)`: a page; it must ask no other host and break nowhere."""
    contexts, hosts, broken = [], set(), []

    def start(address, **options):
        context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#box textarea:enabled")
        page.wait_for_timeout(1000)  # the language of the browser is asked for once the page is there
        return page

    yield start
    for context in contexts:
        context.close()
    assert hosts - {None, ""} == {"127.0.0.1"}
    assert not broken


def shoot(page, name, **options):
    folder = os.environ.get("INTERNVL_CHAT_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), **options)


def bots(page):
    return page.locator("#conversation .bot.message")


def upload(page, *names):
    before = page.locator("#box .thumbnails > *").count()
    page.set_input_files("#box input[type=file]", [str(name) for name in names])
    page.wait_for_function(
        "([count]) => document.querySelectorAll('#box .thumbnail-item').length >= count", arg=[before + len(names)]
    )


def ask(page, question, *files):
    """Asks as a visitor does; returns the answer once it is complete."""
    if files:
        upload(page, *files)
    before = bots(page).count()
    page.fill("#box textarea", question)
    page.press("#box textarea", "Enter")
    page.wait_for_function(
        """before => !document.querySelector('#box textarea').disabled
            && !document.querySelector('#box .stop-button')
            && (document.querySelectorAll('#conversation .bot.message').length > before
                || document.querySelector('#status').innerText.includes('⚠'))""",
        arg=before,
    )
    return [bots(page).nth(index).inner_text() for index in range(before, bots(page).count())]


def status(page):
    return page.locator("#status").inner_text()


def test_rounds_with_images_a_video_and_boxes(visit, demo):
    page = visit(demo[0])
    first = ask(page, "Please describe the image.", EXAMPLES / "image1.jpg")
    assert first and "circle" in first[0]
    assert "files: 1, tiles: 1" in status(page) and "of 8,192 tokens" in status(page)
    ask(page, "And this one?", EXAMPLES / "wide.png")
    assert "files: 2, tiles: 4" in status(page)
    page.click("#tiling > button")
    page.click("#show-tiling")
    page.wait_for_selector("#gallery img")
    assert page.locator("#gallery").inner_text().count("pixels") == 2
    shoot(page, "tiling", full_page=True)
    page.click("#new")
    page.wait_for_function("() => !document.querySelector('#conversation .bot.message')")
    pictures = page.locator("#conversation .bot img").count()
    ask(page, "Give the box of the <ref>red circle</ref>.", EXAMPLES / "image1.jpg")
    page.wait_for_selector("#conversation .bot img")
    assert pictures == 0
    shoot(page, "boxes")
    page.click("#new")
    page.wait_for_function("() => !document.querySelector('#conversation .bot.message')")
    assert ask(page, "What is moving?", EXAMPLES / "moving_circle.mp4")
    assert "files: 1, tiles: 8" in status(page)
    shoot(page, "video")


def test_pieces_and_stop(visit, serve, endless):
    page = visit(serve("--model", str(endless), "--max-new-tokens", "2000")[0])
    page.evaluate(
        """() => {
            window.lengths = new Set();
            new MutationObserver(() => {
                const bot = document.querySelector('#conversation .bot.message');
                if (bot) window.lengths.add(bot.innerText.length);
            }).observe(document.querySelector('#conversation'), {subtree: true, childList: true, characterData: true});
        }"""
    )
    page.fill("#box textarea", "Hello, who are you?")
    page.press("#box textarea", "Enter")
    page.wait_for_function("() => window.lengths.size > 5")  # the answer grows before one's eyes
    shoot(page, "streaming")
    page.click("#box .stop-button")
    page.wait_for_function("() => document.querySelector('#status').innerText.includes('stopped')")
    said = bots(page).last.inner_text()
    page.wait_for_timeout(2000)
    assert said and bots(page).last.inner_text() == said
    assert page.locator("#box textarea").is_enabled()
    page.fill("#box textarea", "Hello?")
    page.press("#box textarea", "Enter")
    page.wait_for_selector("#box .stop-button")
    page.wait_for_function("() => document.querySelectorAll('#conversation .bot.message').length > 1")
    page.click("#new")  # in the middle of an answer
    page.wait_for_function("() => !document.querySelector('#conversation .bot.message')")
    page.wait_for_timeout(2000)
    assert bots(page).count() == 0 and page.locator("#box textarea").is_enabled()


def test_broken_and_large_files_get_a_readable_message(visit, demo, tmp_path):
    page = visit(demo[0])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "large.png").write_bytes(bytes(1_500_000))
    ask(page, "What is this?", tmp_path / "broken.png")
    assert "broken.png cannot be read" in status(page) and "/" not in status(page).replace("/ ", "")
    assert page.input_value("#box textarea") == "What is this?"  # to be asked again
    assert bots(page).count() == 0
    shoot(page, "broken")
    page.set_input_files("#box input[type=file]", [str(tmp_path / "large.png")])
    page.wait_for_selector("text=/exceed the maximum allowed size of 1.0 Mb: .large.png/")
    shoot(page, "large")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_in_chinese(visit, demo, scheme):
    page = visit(demo[0], locale="zh-CN", color_scheme=scheme, viewport={"width": 375, "height": 740}, has_touch=True)
    page.wait_for_selector("text=新对话")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 375
    assert ask(page, "这是什么？", EXAMPLES / "image2.jpg")
    assert "个词元" in status(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 375
    ink = "() => getComputedStyle(document.querySelector('#box textarea')).color.match(/\\d+/g).slice(0, 3).map(Number)"
    assert (sum(page.evaluate(ink)) > 384) == (scheme == "dark")
    page.click("#settings > button")
    page.wait_for_selector("text=系统消息")
    shoot(page, f"phone-{scheme}")
    shoot(page, f"phone-{scheme}-full", full_page=True)
    page.click("#theme")
    page.wait_for_timeout(1500)  # it fades
    assert (sum(page.evaluate(ink)) > 384) == (scheme != "dark")
    page.click("text=English")
    page.wait_for_selector("text=New conversation")


def test_nothing_else_is_served_or_asked(visit, demo):
    """Files of the machine are not given out; the browser is told to ask no other address, whatever a page names."""
    for path in (ROOT / "config.json", Path("/etc/passwd"), demo[1] / "log"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{demo[0]}gradio_api/file={path}")
    page = visit(demo[0])
    blocked = page.evaluate(
        """() => new Promise(resolve => {
            document.addEventListener('securitypolicyviolation', event => resolve(event.blockedURI));
            document.body.appendChild(new Image()).src = 'http://127.0.0.1:9/picture.png';
            setTimeout(() => resolve('nothing'), 10000);
        })"""
    )
    assert blocked.startswith("http://127.0.0.1:9/")
