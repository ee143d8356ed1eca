"""How the tasks of one picture are asked and answered: words and phrasings, in English and Chinese."""

from .world import COLORS, SHAPES

ZH_COLORS = dict(
    zip(
        (*COLORS, "white", "gray", "light blue", "light green", "beige"),
        "红 绿 蓝 黄 橙 紫 粉 黑 白 灰 浅蓝 浅绿 米".split(),
    )
)
ZH_SHAPES = dict(zip(SHAPES, "圆形 正方形 三角形 星形 十字形 心形 圆环 菱形".split()))
COUNTS = {"en": ("no", "one", "two", "three", "four"), "zh": ("没有", "一个", "两个", "三个", "四个")}
# Row and column of the picture cut in three -> where that is.
ZONES = {
    "en": (
        ("at the top left", "at the top", "at the top right"),
        ("at the left", "at the center", "at the right"),
        ("at the bottom left", "at the bottom", "at the bottom right"),
    ),
    "zh": (("左上角", "上方", "右上角"), ("左侧", "中间", "右侧"), ("左下角", "下方", "右下角")),
}
ORDINALS = ("first", "second", "third", "fourth")

# Task -> language -> (questions, answer); a task without Chinese is asked in English only. What is asked for stands
# next to what it was looked up by: the look-up is learnt sooner.
PHRASES = {
    "color": {
        "en": (("What color is the {shape}?", "What is the color of the {shape}?"), "The {shape} is {color}."),
        "zh": (("{shape}是什么颜色？", "请问{shape}是什么颜色？"), "{shape}是{color}。"),
    },
    "shape": {
        "en": (
            ("What shape is {color}?", "Which shape is {color}?", "What is the {color} shape?"),
            "{A_name}.",
        ),
        "zh": (("{color}的图形是什么形状？", "哪个图形是{color}？"), "{name}。"),
    },
    "background": {
        "en": (
            ("What color is the background?", "What is the background color?"),
            "The background is {background}.",
        ),
        "zh": (("背景是什么颜色？", "请问背景的颜色是什么？"), "背景是{background}。"),
    },
    "count": {
        "en": (("How many shapes are there?", "How many shapes are in the image?", "Count the shapes."), "{there_are}"),
        "zh": (("图中有几个图形？", "一共有多少个图形？"), "{there_are}"),
    },
    "where": {
        "en": (("Where is the {name}?", "Where is the {name} in the image?"), "The {name} is {zone}."),
        "zh": (("{name}在哪里？", "{name}在图中的什么位置？"), "{name}在{zone}。"),
    },
    "exists": {
        "en": (
            ("Is there {a_name}?", "Is there {a_name} in the image?", "Can you see {a_name}?"),
            ("No, there is no {name}.", "Yes, there is {a_name}."),
        ),
        "zh": (("有{name}吗？", "图中有{name}吗？"), ("没有{name}。", "是的，有{name}。")),
    },
    "relation": {
        "en": (("Is the {name} {relation} the {other}?",), ("No.", "Yes.")),
    },
    "describe": {
        "en": (
            (
                "Describe the image.",
                "Please describe the image shortly.",
                "Please describe the image in detail.",
                "What is in the image?",
                "What do you see?",
            ),
            "{description}",
        ),
        "zh": (("请描述这张图片。", "图片里有什么？", "请简短地描述图片。"), "{description}"),
    },
    "text": {
        "en": (
            ("What does the text say?", "Read the text.", "What is written in the image?"),
            'The text says "{text}".',
        ),
        "zh": (("图中的文字是什么？", "请读出图中的文字。"), "文字是“{text}”。"),
    },
    "line": {
        "en": (("What is the {ordinal} line?", "Read the {ordinal} line."), 'The {ordinal} line says "{text}".'),
    },
    "ground": {
        "en": (
            (
                "Please provide the bounding box coordinate of the region this sentence describes: <ref>{name}</ref>",
                "Give the box of the <ref>{name}</ref>.",
            ),
            "<ref>{name}</ref><box>[[{box}]]</box>",
        ),
    },
}
