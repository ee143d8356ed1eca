"""One model and one tokenizer in many threads, and streams that are left, fail or run side by side."""

import gc
import threading
import weakref

import pytest
from PIL import Image
from transformers import AutoTokenizer

SETTINGS = dict(max_new_tokens=8, do_sample=False)
THREADS = 8


def picture(number):
    return Image.new("RGB", (448, 448), ["red", "green", "blue", "white"][number % 4])


def converse(model, tokenizer, number) -> list:
    """A conversation of one of the threads: a picture, a second round, a stream, a batch with text."""
    pixels = model.load_image(picture(number))
    words = " ".join(["please"] * number)  # prompts of different lengths
    first, history = model.chat(tokenizer, pixels, f"Describe the image, {words}.", SETTINGS, return_history=True)
    second = model.chat(tokenizer, pixels, "What color is it?", SETTINGS, history=history)
    streamed = "".join(model.stream_chat(tokenizer, pixels, f"What is this, {words}?", SETTINGS))
    batch = model.batch_chat(
        tokenizer, pixels, ["Hello!", "<image>\nWhat is it?"], SETTINGS, num_patches_list=[0, len(pixels)]
    )
    return [first, [list(pair) for pair in history], second, streamed, batch]


@pytest.mark.parametrize("use_fast", [True, False], ids=["fast", "slow"])
def test_threads_get_what_they_would_get_alone(shipped_model, checkpoint, use_fast):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, use_fast=use_fast)
    alone = [converse(shipped_model, tokenizer, number) for number in range(THREADS)]
    together, start = [None] * THREADS, threading.Barrier(THREADS)

    def run(number):
        start.wait()
        try:
            together[number] = converse(shipped_model, tokenizer, number)
        except BaseException as error:  # it is shown below
            together[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert len({str(answers) for answers in alone}) > THREADS // 2  # else it would prove little


def test_streams_side_by_side(shipped_model, shipped_tokenizer):
    questions = ["Tell me a story.", "Hello, who are you?", "What can you do?", "Thank you."]
    expected = [shipped_model.chat(shipped_tokenizer, None, question, SETTINGS) for question in questions]
    streams = [shipped_model.stream_chat(shipped_tokenizer, None, question, SETTINGS) for question in questions]
    running = list(streams)
    while running:  # a piece from each in turn
        running = [stream for stream in running if next(stream, None) is not None]
    assert [stream.text for stream in streams] == expected


@pytest.fixture
def caches(shipped_model):
    """Weak references to the key/value caches that generation has made."""
    seen = []

    def look(module, args, kwargs):
        cache = kwargs.get("past_key_values")
        cache = cache[0][0] if isinstance(cache, tuple) else cache  # before 4.42: keys and values of each layer
        if cache is not None and all(cache is not ref() for ref in seen):
            seen.append(weakref.ref(cache))

    hook = shipped_model.language_model.register_forward_pre_hook(look, with_kwargs=True)
    yield seen
    hook.remove()


@pytest.mark.parametrize("how", ["close", "with", "break", "del", "unread"])
def test_a_stream_that_is_left_frees_its_memory(shipped_model, shipped_tokenizer, caches, how):
    before = threading.active_count()
    settings = dict(max_new_tokens=5000, min_new_tokens=5000, do_sample=False)
    stream = shipped_model.stream_chat(shipped_tokenizer, None, "Tell me a story.", settings)
    thread = stream._thread
    if how == "break":
        for number, _ in enumerate(stream):
            if number:
                break
    elif how != "unread":
        next(stream), next(stream)  # before 4.42 only the second step is given a cache
    if how == "close":
        stream.close()
    elif how == "with":
        with stream:
            pass
    del stream
    thread.join(timeout=60)
    assert not thread.is_alive() and threading.active_count() == before
    del thread
    gc.collect()
    if caches or how != "unread":  # a stream nobody read may end before its first step
        assert caches and [reference() for reference in caches] == [None] * len(caches)


class Fault(Exception):
    pass


@pytest.mark.parametrize("error", [Fault, MemoryError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("step", [0, 2])
def test_any_error_in_generation_reaches_the_consumer_and_keeps_nothing(
    shipped_model, shipped_tokenizer, caches, error, step
):
    """Before the first piece and between two. The error holds the frames in which it arose, the cache among them: who
    has dealt with it must not have to wait for the garbage collector to get that memory back."""
    steps = iter(range(1000))

    def fail(module, args):
        if next(steps) == step:
            raise error("on purpose")

    hook = shipped_model.language_model.register_forward_pre_hook(fail)
    gc.disable()
    try:
        stream = shipped_model.stream_chat(shipped_tokenizer, None, "Tell me a story.", SETTINGS)
        with pytest.raises(error, match="on purpose") as caught:
            list(stream)
        assert list(stream) == [] and not stream._thread.is_alive()
        hook.remove()
        failed = list(caches)
        expected = shipped_model.chat(shipped_tokenizer, None, "Tell me a story.", SETTINGS)
        again = "".join(shipped_model.stream_chat(shipped_tokenizer, None, "Tell me a story.", SETTINGS))
        assert again == expected
        del caught
        assert failed or not step
        assert [reference() for reference in failed] == [None] * len(failed)
    finally:
        gc.enable()
        hook.remove()
