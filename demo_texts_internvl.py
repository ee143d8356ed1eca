"""What the web demo says, in English and Chinese: as data."""

LANGUAGES = {"English": "en", "中文": "zh"}

TEXTS = {
    "en": {
        "title": "InternVL",
        "ask": "Ask about images and videos: type, paste or drop files here",
        "empty": "Ask a question, with or without images and videos.",
        "conversation": "Conversation",
        "new": "New conversation",
        "theme": "Light / dark",
        "language": "Language",
        "settings": "Settings",
        "system": "System message",
        "max_num": "Most tiles of an image",
        "frames": "Frames of a video",
        "max_new_tokens": "Longest answer, tokens",
        "temperature": "Temperature (0: the likeliest answer)",
        "tiling": "Tiling",
        "show_tiling": "Show how the pictures are cut",
        "no_media": "There are no images and videos yet.",
        "tile_caption": "{name}: {width} × {height} pixels, {columns} × {rows} tiles{thumbnail}: {tokens} tokens",
        "thumbnail": " and the whole image as one more",
        "frame_caption": "{name}, frame {number} of {total}: {tokens} tokens",
        "status_media": "files: {files}, tiles: {tiles}",
        "status_tokens": "prompt: {length} of {limit} tokens",
        "status_answer": "answer: {tokens} tokens, {seconds} s",
        "stopped": "stopped",
        "no_question": "The question is empty.",
        "unreadable": "{name} cannot be read: {reason}",
        "too_many": "A conversation has at most {limit} files, these would be {files}: begin a new one.",
        "too_large": "{name} has {size} MiB, the limit is {limit} MiB.",
        "too_long": "This would be {length} tokens, the model takes {limit}: use fewer tiles or frames, or begin a new "
        "conversation.",
        "memory": "The device is out of memory: use fewer tiles or frames, or begin a new conversation.",
        "failed": "The answer failed: {reason}",
    },
    "zh": {
        "title": "InternVL",
        "ask": "就图片和视频提问：输入文字，粘贴或拖入文件",
        "empty": "请提问，可以附上图片和视频。",
        "conversation": "对话",
        "new": "新对话",
        "theme": "浅色 / 深色",
        "language": "语言",
        "settings": "设置",
        "system": "系统消息",
        "max_num": "每张图片最多切块数",
        "frames": "每段视频取帧数",
        "max_new_tokens": "回答最长词元数",
        "temperature": "温度（0 表示取最可能的回答）",
        "tiling": "切块",
        "show_tiling": "显示图片如何切块",
        "no_media": "还没有图片或视频。",
        "tile_caption": "{name}：{width} × {height} 像素，{columns} × {rows} 块{thumbnail}，共 {tokens} 个词元",
        "thumbnail": "，另加整图一块",
        "frame_caption": "{name}，第 {number} 帧，共 {total} 帧：{tokens} 个词元",
        "status_media": "文件：{files}，切块：{tiles}",
        "status_tokens": "提示：{length} / {limit} 个词元",
        "status_answer": "回答：{tokens} 个词元，{seconds} 秒",
        "stopped": "已停止",
        "no_question": "问题是空的。",
        "unreadable": "无法读取 {name}：{reason}",
        "too_many": "一次对话最多 {limit} 个文件，现在会有 {files} 个：请开始新对话。",
        "too_large": "{name} 有 {size} MiB，上限是 {limit} MiB。",
        "too_long": "这样会有 {length} 个词元，而模型最多 {limit} 个：请减少切块或帧数，或开始新对话。",
        "memory": "设备内存不足：请减少切块或帧数，或开始新对话。",
        "failed": "回答失败：{reason}",
    },
}


def text(language, key, **values) -> str:
    """A text in `language`; numbers are written with thousands separated."""
    shown = {name: f"{value:,}" if isinstance(value, int) else value for name, value in values.items()}
    return TEXTS[language][key].format(**shown)


def preferred(accept_language) -> str:
    """The first of our languages in an HTTP header `Accept-Language`, English where none of them is named."""
    for entry in (accept_language or "").lower().split(","):
        name = entry.split(";")[0].strip().split("-")[0]
        if name in TEXTS:
            return name
    return "en"
