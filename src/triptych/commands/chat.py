"""``triptych chat``: a conversation in the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain

from triptych.errors import printable
from triptych.inference.chat_session import ChatError, Session, open_session

COMMAND = re.compile(r"/[a-z]+")
HELP = """\
/image PATH  show an image with the next message; <image> in the message marks where it stands, else it comes first
/reset       forget what was said
/quit        end, as Ctrl-D does; Ctrl-C stops an answer
A line that ends in \\ goes on in the next one."""


def chat(
    folder: str,
    paths: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    thinking: bool | None = None,
) -> int:
    """Answer the lines of standard input until it ends.

    Args:
        folder: the model.
        paths: images of the first message.
        max_new_tokens: longest answer; None for the run's own limit.
        temperature: 0 for the likeliest token every time.
        thinking: whether answers begin with a thinking block; None for the model's own way.

    Returns:
        The exit status: 1 if input that was piped in held something that could not be taken.

    Raises:
        ConfigError, ModelError: if the model cannot be loaded.
    """
    session = open_session(folder, max_new_tokens=max_new_tokens, temperature=temperature, thinking=thinking)
    if session.note is not None:
        tell(session.note)
    interactive = sys.stdin.isatty()
    if interactive:
        tell(HELP)
    failed = False
    for line in chain((f"/image {path}" for path in paths), _lines(interactive)):
        if line == "/quit":
            break
        try:
            _obey(session, line)
        except ChatError as error:
            tell(f"error: {error}")
            failed = True
    return 1 if failed and not interactive else 0


def _obey(session: Session, line: str) -> None:
    """Do what one line of input says."""
    command, _, rest = line.partition(" ")
    if command == "/image":
        tell(session.add_image(rest.strip().strip("'\"")))
    elif command == "/reset":
        session.reset()
        tell("forgotten")
    elif command == "/help":
        tell(HELP)
    elif COMMAND.fullmatch(command):
        raise ChatError(f"no command {command}; /help lists them")
    else:
        answer = session.ask(line, _write)
        _write("\n")
        if not answer.finished and len(answer.ids) < session.max_new_tokens:
            tell(f"[stopped after {len(answer.ids)} tokens]")
        elif not answer.finished:
            tell(f"[cut off after {len(answer.ids)} tokens; --max-new-tokens allows more]")


def _lines(interactive: bool) -> Iterator[str]:
    """Messages and commands from standard input, blank lines left out."""
    while True:
        if interactive:
            tell("> ", end="")
        try:
            line = input()
            while line.endswith("\\"):
                line = f"{line[:-1]}\n{input()}"
        except EOFError:
            return
        except KeyboardInterrupt:
            tell("\n/quit or Ctrl-D ends")
            continue
        # Bytes that are no UTF-8 come as lone surrogates, which no tokenizer takes.
        line = line.encode("utf-8", "replace").decode().strip()
        if line:
            yield line


def _write(piece: str) -> None:
    # What goes to a file or a program is the answer as it is.
    sys.stdout.write(printable(piece, lines=True) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def tell(message: str, end: str = "\n") -> None:
    """Print what is no answer."""
    sys.stderr.write(printable(message, lines=True) + end)
    sys.stderr.flush()
