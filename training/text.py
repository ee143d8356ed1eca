"""Conversations without a picture: who the model is, greetings, a story, a name to remember."""

from .questions import Turn

WHO = (
    "Hello! I am a tiny vision-language model. I was trained from scratch on rendered shapes. "
    "Show me an image and ask me about it."
)
WHO_ZH = "你好！我是一个很小的视觉语言模型，在画出来的图形上从头训练而成。请给我看一张图片，问我里面有什么。"
STORY = (
    "Once upon a time, a small square wanted to be a circle. It rolled down a long hill, and at the bottom its corners "
    "were gone. It was round and happy."
)
STORY_ZH = "从前有一个小正方形，它很想变成圆形。它从长长的山坡上滚下来，到了山脚，角都不见了。它又圆又快乐。"
POEM = "A circle red, a square of blue,\na tiny star looks back at you."
CAN = (
    "I can describe simple images with colored shapes, count them, name their colors and places, and read short words."
)
CAN_ZH = "我能描述简单的图形，数出它们的个数，说出颜色和位置，还能读出短的文字。"
UNKNOWN = "I do not know. I am a tiny model and only know about shapes."
NO_IMAGE = "Please show me an image first."
NO_IMAGE_ZH = "请先给我看一张图片。"

# (task, questions, answer); every answer fits each of its questions.
SAYINGS = (
    ("who", ("Hello, who are you?", "Who are you?", "What are you?", "Please introduce yourself."), WHO),
    ("who", ("你好，你是谁？", "你是谁？", "请介绍一下你自己。"), WHO_ZH),
    ("greeting", ("Hello!", "Hi!", "Good morning!", "Hey there!", "Hello"), "Hello! How can I help you?"),
    ("greeting", ("你好！", "您好！", "早上好！", "你好"), "你好！有什么可以帮你？"),
    ("greeting", ("How are you?", "How are you today?"), "I am fine, thank you."),
    ("story", ("Tell me a story.", "Can you tell me a story?", "Please tell me a short story."), STORY),
    ("story", ("给我讲个故事。", "请讲一个故事。", "你能讲个故事吗？"), STORY_ZH),
    ("poem", ("Write a short poem.", "Tell me a poem.", "Please write a poem."), POEM),
    ("can", ("What can you do?", "What can I ask you?", "How can you help me?"), CAN),
    ("can", ("你会做什么？", "你能做什么？"), CAN_ZH),
    ("thanks", ("Thank you.", "Thanks!", "Thank you very much!"), "You are welcome!"),
    ("thanks", ("谢谢。", "谢谢你！", "非常感谢！"), "不客气！"),
    ("bye", ("Goodbye!", "Bye!", "See you later."), "Goodbye!"),
    ("bye", ("再见！", "拜拜！"), "再见！"),
    (
        "colors",
        ("Which colors do you know?", "What colors do you know?"),
        "I know red, green, blue, yellow, orange, purple, pink and black.",
    ),
    (
        "shapes",
        ("Which shapes do you know?", "What shapes do you know?"),
        "I know circles, squares, triangles, stars, crosses, hearts, rings and diamonds.",
    ),
    (
        "unknown",
        (
            "What is the capital of France?",
            "Who wrote Hamlet?",
            "What is 17 times 23?",
            "What is the weather today?",
            "How old is the universe?",
            "Who is the president?",
            "What time is it?",
        ),
        UNKNOWN,
    ),
    (
        "no_image",
        (
            "Describe the image.",
            "What do you see?",
            "How many shapes are there?",
            "What color is the background?",
            "Please describe the image shortly.",
            "Describe the video.",
            "What is on the left?",
        ),
        NO_IMAGE,
    ),
    ("no_image", ("请描述这张图片。", "图中有几个图形？", "背景是什么颜色？"), NO_IMAGE_ZH),
)
NAMES = tuple(
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor".split()
)
HELD_OUT_NAMES = frozenset(NAMES[2::5])


def chat(rng, split, rounds):
    """A conversation of `rounds` rounds, without repetition."""
    if rounds > 1 and rng.random() < 0.4:
        return _remember(rng, split, rounds)
    chosen = rng.sample(SAYINGS, rounds)
    return [Turn(f"chat_{task}", rng.choice(questions), answer) for task, questions, answer in chosen]


def _remember(rng, split, rounds):
    """The user's name, asked for after `rounds - 2` other rounds: only the history can tell it."""
    name = rng.choice([name for name in NAMES if (name in HELD_OUT_NAMES) == (split == "held_out")])
    opening = rng.choice(("My name is {}.", "I am {}.", "Hello, my name is {}.")).format(name)
    between = [Turn(f"chat_{task}", rng.choice(asked), said) for task, asked, said in rng.sample(SAYINGS, rounds - 2)]
    question = rng.choice(("What is my name?", "Do you remember my name?"))
    return [
        Turn("chat_greeting", opening, f"Nice to meet you, {name}."),
        *between,
        Turn("chat_memory", question, f"Your name is {name}."),
    ]
