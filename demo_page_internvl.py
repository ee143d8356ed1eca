"""The web demo's page: Gradio components around `DemoSession`.

One model answers one visitor at a time, the others wait in line. Every visitor has a conversation of their own in the
server's memory, which ends with the page. A content security policy keeps the browser from asking other hosts,
whatever an answer or Gradio's own page may name.
"""

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from internvl_chat.demo_internvl import DemoError, DemoSession, Limits, as_markdown, is_video
from internvl_chat.demo_texts_internvl import LANGUAGES, TEXTS, preferred, text

_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
_SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "sans-serif"]
_CSS = """
.gradio-container { width: 100% !important; max-width: 960px !important; margin: 0 auto !important; }
#top { align-items: center; flex-wrap: nowrap; }
#top > * { min-width: 0 !important; }
#top h1 { margin: 0; white-space: nowrap; }
#language .wrap { flex-wrap: nowrap; }
#theme, #language { flex: 0 0 auto; width: auto; }
#status { min-height: 1.5em; opacity: 0.8; }
#conversation { height: 60vh; min-height: 320px; }
#conversation img, #conversation video { max-height: 240px; width: auto; }
#gallery .caption-label { white-space: normal; max-width: 100%; }
#conversation a.download-link ~ button { display: none; }
@media (max-width: 640px) {
  #title { display: none; }
  #language label { padding: 4px 8px; }
}
"""
# Gradio confines the rules above to the components; this one is about what is around them.
_HEAD = "<style>@media (max-width: 640px) { .gradio-container > .main { padding: 8px !important; } }</style>"
_SWITCH_THEME = "() => document.body.classList.toggle('dark')"
# Seconds after which files, and conversations in which nothing was asked, are dropped; files are looked at so often.
_KEEP, _CLEAN_EVERY = 3600, 600
_MOST_VISITORS = 100  # each has tiles, keys and values in memory; the longest idle one is forgotten


class _OwnHostOnly:
    """ASGI middleware: the headers that keep a page to its own host, on every answer of the server."""

    _HEADERS = (
        (b"content-security-policy", _POLICY.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    )

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self._HEADERS]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


@dataclass
class _Visitor:
    """What the server keeps of one page."""

    session: DemoSession
    messages: list  # as gr.Chatbot takes them


def _files(box) -> list:
    """(path, name) of what lies in the text box. Gradio keeps the name that the file had, cleaned."""
    return [(path, Path(path).name) for path in (box or {}).get("files") or ()]


class _Page:
    """The components and what happens with them."""

    def __init__(self, model, tokenizer, limits):
        self.model = model
        self.tokenizer = tokenizer
        self.limits = limits

    def build(self) -> gr.Blocks:
        config = self.model.config
        most = config.max_dynamic_patch if config.dynamic_image_size else 1
        words = TEXTS["en"]
        with gr.Blocks(title=words["title"], analytics_enabled=False, delete_cache=(_CLEAN_EVERY, _KEEP)) as page:
            visitor = gr.State(None, time_to_live=_KEEP)
            with gr.Row(elem_id="top"):
                gr.Markdown(f"# {words['title']}", elem_id="title")
                language = gr.Radio(
                    list(LANGUAGES),
                    value="English",
                    label=words["language"],
                    show_label=False,
                    elem_id="language",
                    container=False,
                )
                theme = gr.Button(words["theme"], size="sm", elem_id="theme", min_width=80)
            chat = gr.Chatbot(
                label=words["conversation"],
                elem_id="conversation",
                height=None,
                placeholder=words["empty"],
                buttons=["copy"],
                feedback_options=None,
                allow_tags=False,
            )
            box = gr.MultimodalTextbox(
                placeholder=words["ask"],
                show_label=False,
                label=words["ask"],
                file_types=["image", "video"],
                file_count="multiple",
                sources=["upload"],
                elem_id="box",
                autofocus=True,
            )
            status = gr.Markdown("", elem_id="status")
            new = gr.Button(words["new"], size="sm", elem_id="new")
            with gr.Accordion(words["tiling"], open=False, elem_id="tiling") as tiling:
                show = gr.Button(words["show_tiling"], size="sm", elem_id="show-tiling")
                note = gr.Markdown("", visible=False)
                gallery = gr.Gallery(
                    show_label=False, columns=2, object_fit="contain", visible=False, elem_id="gallery", buttons=[]
                )
            with gr.Accordion(words["settings"], open=False, elem_id="settings") as settings:
                system = gr.Textbox(self.model.system_message, label=words["system"], lines=2, elem_id="system")
                most_tiles = gr.Slider(1, self.limits.tiles, most, step=1, label=words["max_num"], elem_id="max-num")
                frames = gr.Slider(1, self.limits.frames, 8, step=1, label=words["frames"], elem_id="frames")
                longest = gr.Slider(
                    1,
                    self.limits.max_new_tokens,
                    self.limits.max_new_tokens,
                    step=1,
                    label=words["max_new_tokens"],
                    elem_id="max-new-tokens",
                )
                temperature = gr.Slider(0, 2, 0, step=0.1, label=words["temperature"], elem_id="temperature")

            labels = {  # component -> its property and the text that is shown there
                chat: {"label": "conversation", "placeholder": "empty"},
                box: {"placeholder": "ask", "label": "ask"},
                new: {"value": "new"},
                theme: {"value": "theme"},
                language: {"label": "language"},
                tiling: {"label": "tiling"},
                show: {"value": "show_tiling"},
                settings: {"label": "settings"},
                system: {"label": "system"},
                most_tiles: {"label": "max_num"},
                frames: {"label": "frames"},
                longest: {"label": "max_new_tokens"},
                temperature: {"label": "temperature"},
            }

            def relabel(name):
                """The components in the language of that name, each updated."""
                code = LANGUAGES[name]
                return {
                    component: gr.update(**{prop: text(code, key) for prop, key in props.items()})
                    for component, props in labels.items()
                }

            def begin(request: gr.Request):
                code = preferred(request.headers.get("accept-language"))
                name = next(name for name, known in LANGUAGES.items() if known == code)
                updates = relabel(name)
                return {**updates, language: gr.update(value=name, **_kept(updates[language]))}

            def idle(value=None, **more):
                return gr.update(value=value, submit_btn=True, stop_btn=False, interactive=True, **more)

            def ask(value, kept, name, system, most_tiles, frames, longest, temperature):
                code = LANGUAGES[name]
                kept = kept or _Visitor(DemoSession(self.model, self.tokenizer, self.limits), [])
                files, question = _files(value), (value or {}).get("text") or ""
                messages = kept.messages
                before = messages[:]
                try:
                    pieces = kept.session.ask(
                        question,
                        files,
                        system=system,
                        max_num=most_tiles,
                        num_segments=frames,
                        max_new_tokens=longest,
                        temperature=temperature,
                    )
                    messages += [*map(_shown_file, files), {"role": "user", "content": as_markdown(question)}]
                    answered = {"role": "assistant", "content": ""}
                    busy = gr.update(value=None, submit_btn=False, stop_btn=True, interactive=False)
                    costs = _costs(kept.session, code)
                    # The session is handed out before the answer begins, so that `stop` finds it.
                    yield {visitor: kept, chat: messages, box: busy, status: costs}
                    for answer in pieces:
                        answered["content"] = as_markdown(answer)
                        yield {chat: [*messages, answered]}
                except DemoError as problem:
                    told = problem.told(code)
                    gr.Warning(told)
                    kept.messages = before
                    yield {visitor: kept, chat: before, box: idle(value), status: f"⚠ {told}"}
                    return
                if kept.messages is not messages:  # a new conversation has begun, which this one may have overwritten
                    yield {chat: kept.messages, box: idle(), status: ""}
                    return
                if not answered["content"]:  # stopped before it began
                    kept.messages = before
                    yield {chat: before, box: idle(value), status: text(code, "stopped")}
                    return
                messages.append(answered)
                drawn = kept.session.drawn_boxes(kept.session.history[-1][1])
                if drawn is not None:
                    picture = gr.Image(drawn, format="png", show_label=False, buttons=["fullscreen"])
                    messages.append({"role": "assistant", "content": picture})
                yield {chat: messages, box: idle(), status: _costs(kept.session, code, answered=True)}

            def stop(kept):
                if kept:
                    kept.session.stop()

            def forget(kept):
                if kept:
                    kept.messages = []
                    kept.session.reset()
                return {chat: [], status: "", gallery: gr.update(value=None, visible=False), box: idle()}

            def draw(value, kept, name, most_tiles):
                code = LANGUAGES[name]
                session = kept.session if kept else DemoSession(self.model, self.tokenizer, self.limits)
                try:
                    pictures = session.tilings(code, most_tiles, _files(value))
                    told = "" if pictures else text(code, "no_media")
                except DemoError as problem:
                    pictures, told = [], f"⚠ {problem.told(code)}"
                return gr.update(value=pictures, visible=bool(pictures)), gr.update(value=told, visible=bool(told))

            # Only asking needs the model; what else there is never waits behind an answer.
            quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
            page.load(begin, None, list(labels), **quick)
            language.input(relabel, [language], list(labels), **quick)
            theme.click(None, js=_SWITCH_THEME)
            box.submit(
                ask,
                [box, visitor, language, system, most_tiles, frames, longest, temperature],
                [visitor, chat, box, status],
                concurrency_limit=1,
                show_progress="hidden",
                api_visibility="private",
            )
            box.stop(stop, [visitor], None, **quick)
            gr.on([new.click, chat.clear], forget, [visitor], [chat, status, gallery, box], **quick)
            show.click(draw, [box, visitor, language, most_tiles], [gallery, note], **quick)
        return page


def _kept(update):
    """The properties of an update, to be put into another."""
    return {name: value for name, value in update.items() if name != "__type__"}


def _shown_file(file):
    path, name = file
    component = gr.Video if is_video(name) else gr.Image
    return {"role": "user", "content": component(path, show_label=False, buttons=[])}


def _costs(session, language, answered=False) -> str:
    """The line under the conversation: tiles, tokens, time."""
    parts = []
    if session.media:
        parts.append(text(language, "status_media", files=len(session.media), tiles=session.tiles))
    parts.append(text(language, "status_tokens", length=session.length, limit=session.context_length))
    if answered:
        seconds = f"{session.seconds:.1f}"
        parts.append(text(language, "status_answer", tokens=session.answer_length, seconds=seconds))
        if session.stopped:
            parts.append(text(language, "stopped"))
    return " · ".join(parts)


def build_page(model, tokenizer, limits=None) -> gr.Blocks:
    """The page, not yet served."""
    return _Page(model, tokenizer, limits or Limits()).build()


def serve(model, tokenizer, limits, *, host="127.0.0.1", port=7860, open_browser=False, on_ready=None) -> None:
    """Serves the page until KeyboardInterrupt; `on_ready(address)` is called once it does.

    Uploads lie in a folder of their own, which is deleted at the end. Raises OSError where the port is taken.
    """
    folder = tempfile.mkdtemp(prefix="internvl-chat-demo-")
    os.environ["GRADIO_TEMP_DIR"] = folder
    page = build_page(model, tokenizer, limits).queue(max_size=32)
    try:
        _, address, _ = page.launch(
            prevent_thread_lock=True,
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            quiet=True,
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            state_session_capacity=_MOST_VISITORS,
            footer_links=[],
            max_file_size=limits.upload_bytes,
            app_kwargs={"middleware": [Middleware(_OwnHostOnly)], "docs_url": None, "redoc_url": None},
            theme=gr.themes.Default(font=_SYSTEM_FONTS, font_mono=["ui-monospace", "monospace"]),
            css=_CSS,
            head=_HEAD,
        )
        if on_ready is not None:
            on_ready(address)
        while page.is_running:
            time.sleep(0.2)
    finally:
        page.close(verbose=False)
        shutil.rmtree(folder, ignore_errors=True)
