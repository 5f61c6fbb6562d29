"""``triptych check``: every record of every source, all problems at once, no torch."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Sequence

import orjson

from triptych import config, report
from triptych.data.records import Source
from triptych.data.samples import Examiner, Reading
from triptych.errors import ConfigError
from triptych.family import read_model_files
from triptych.prepare import make_reading


def check(arguments: Sequence[str], *, media_dir: str | None, as_json: bool) -> int:
    """Examine a run file's sources, or data files, and print what was found.

    With a run file the lengths are checked too (code ``too-long``); bare data files are checked without a model.

    Returns:
        The exit status: 1 if there is a problem.

    Raises:
        ConfigError: if a run file cannot be used or a data file is missing.
        ModelError: if the run file's model folder cannot be used.
    """
    out = report.console()
    sources, reading = _what_to_check(arguments, media_dir)
    examiner = Examiner(reading)
    image_counts: Counter[int] = Counter()
    tokens: list[int] = []
    with report.counting("checking", out) as update:
        for _, sample in examiner.run(sources):
            update(examiner.census)
            if sample is None:
                continue
            image_counts[len(sample.measured)] += 1
            if reading is not None and sample.fitted is not None:
                image_tokens = sum(reading.geometry.tokens(*size) for size in sample.fitted.resized)
                tokens.append(len(sample.fitted.encoded.ids) - len(sample.measured) + image_tokens)
    census = examiner.census
    if as_json:
        result = {
            "samples": census.samples,
            "ok": census.ok,
            "problems": [problem.to_dict() for problem in census.problems],
            "dropped": [problem.to_dict() for problem in census.dropped],
        }
        sys.stdout.buffer.write(orjson.dumps(result) + b"\n")  # UTF-8 whatever the terminal's encoding
        sys.stdout.flush()
    else:
        report.print_problems(out, census.problems)
        out.print(report.census_line(census), markup=False)
        if image_counts:
            counts = ", ".join(f"{images}: {samples:,}" for images, samples in sorted(image_counts.items()))
            out.print(f"images per sample: {counts}", markup=False)
        if tokens:
            deciles = statistics.quantiles(tokens, n=10) if len(tokens) > 1 else tokens * 9
            spread = f"median {statistics.median(tokens):,.0f}, 90% under {deciles[8]:,.0f}, longest {max(tokens):,}"
            out.print(f"tokens per sample: {spread}", markup=False)
    return 1 if census.problems else 0


def _what_to_check(arguments: Sequence[str], media_dir: str | None) -> tuple[list[Source], Reading | None]:
    run_files = [name for name in arguments if name.endswith((".yaml", ".yml"))]
    if not run_files:
        return [Source(tuple(arguments), media_dir)], None
    overrides = [name for name in arguments if name not in run_files]
    if len(run_files) > 1 or any("=" not in name for name in overrides):
        raise ConfigError("give one run file (with key=value settings), or data files, not both")
    if media_dir is not None:
        raise ConfigError("--media-dir goes with data files; in a run file each source has its own media_dir")
    settings = config.load(run_files[0], overrides)
    reading = make_reading(read_model_files(settings.model.path), settings)
    return [*settings.sources("train"), *settings.sources("eval")], reading
