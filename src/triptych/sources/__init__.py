"""Data files cut into shards and read: each element a `Record` with its file and line.

Takes the paths of a `Source` (files, globs, URLs, saved ``datasets`` folders); gives `Record(data, origin)` or a
`Problem` for each element, in file order.

    paths -> Source.files() -> readers.cut() -> Shard -> readers.read() -> Elements(records, count)
"""
