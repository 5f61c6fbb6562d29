"""Files of text: JSON arrays, JSON lines, and tables with commas or tabs, in any Unicode encoding, plain or compressed.

path -> Text (bytes as UTF-8) -> cut() -> Shard -> read() -> Elements
"""
