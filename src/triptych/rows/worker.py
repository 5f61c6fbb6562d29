"""A process that builds rows: it takes tasks from a socket and hands rows back in shared memory. It imports no torch.

What goes over the socket is a number and a file descriptor of anonymous memory (``memfd``), which the receiver maps. So
pixels are copied once, nothing needs a place in ``/dev/shm``, and nothing is left behind by whoever is killed, at
whatever moment.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.errors import TriptychError
from triptych.rows.watch import Slot

ALIGNMENT = 64
"""Of arrays in memory, bytes."""

_MESSAGE = struct.Struct("<QQQ")  # number, where in the memory the value's pickle starts, its bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """What a task raised."""

    error: Exception
    trace: str


class SharedMemory:
    """Memory that can be handed to another process, and with it what is in it."""

    def __init__(self) -> None:
        self.file = os.memfd_create("triptych-row")
        self._end = 0
        self._arrays: list[NDArray[np.uint8]] = []  # from the start of the file, the first page of each a new one

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of zeros; pages that are never filled take no memory."""
        size = math.prod(shape)
        os.ftruncate(self.file, self._end + size)
        array = np.frombuffer(mmap.mmap(self.file, size, offset=self._end), np.uint8)
        self._arrays.append(array)
        self._end += size + -size % mmap.ALLOCATIONGRANULARITY
        return array.reshape(shape)

    def fill(self, target: NDArray[np.uint8], source: NDArray[np.uint8]) -> None:
        """Copy into a contiguous part of an array of this memory.

        By a system call: to write into a mapping costs a page fault for every four kilobytes. And image by image,
        while it is in the processor's cache.
        """
        place = self._place(target.data.cast("B"))
        assert place is not None
        self._write(source.data.cast("B"), place)

    def add(self, value: object) -> tuple[int, int]:
        """Add a value; arrays of this memory stay where they are. Returns where its pickle starts, and its bytes."""
        buffers: list[pickle.PickleBuffer] = []
        content = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        spans = [self._keep(buffer.raw()) for buffer in buffers]
        head = memoryview(pickle.dumps((spans, content)))
        return self._append(head), head.nbytes

    def _keep(self, view: memoryview) -> tuple[int, int]:
        place = self._place(view)
        start = self._append(view) if place is None else place
        return start, start + view.nbytes

    def _place(self, view: memoryview) -> int | None:
        """Where these bytes are in the file, if they are in it."""
        if not view.nbytes:
            return None
        address, start = np.frombuffer(view, np.uint8).ctypes.data, 0
        for array in self._arrays:
            offset = address - array.ctypes.data
            if 0 <= offset < array.nbytes:
                return start + offset
            start += array.nbytes + -array.nbytes % mmap.ALLOCATIONGRANULARITY
        return None

    def _append(self, view: memoryview) -> int:
        start = self._end
        self._write(view, start)
        self._end += view.nbytes + -view.nbytes % ALIGNMENT
        return start

    def _write(self, view: memoryview, start: int) -> None:
        while view:
            written = os.pwrite(self.file, view, start)
            view, start = view[written:], start + written


def send(line: socket.socket, number: int, value: object, memory: SharedMemory | None = None) -> None:
    """Hand a value over, and the memory that holds its large arrays.

    Raises:
        OSError: if nobody is there to receive it.
    """
    memory = memory or SharedMemory()
    try:
        socket.send_fds(line, [_MESSAGE.pack(number, *memory.add(value))], [memory.file])
    finally:
        os.close(memory.file)


def receive(line: socket.socket) -> tuple[int, Any] | None:
    """The next number and value; None if there is nobody left to send one.

    Arrays lie in the memory that was handed over, which is freed with the last of them.
    """
    message, files, _, _ = socket.recv_fds(line, _MESSAGE.size, 1)
    if not message:
        return None
    number, start, size = _MESSAGE.unpack(message)
    try:
        view = memoryview(mmap.mmap(files[0], 0))
    finally:
        os.close(files[0])
    spans, content = pickle.loads(view[start : start + size])
    return number, pickle.loads(content, buffers=[view[first:last] for first, last in spans])


def main(descriptor: int, board: int, process: int) -> None:
    """Work until the other end of the socket is closed, as it is when its process ends, in whatever way.

    Args:
        descriptor: of the socket.
        board: descriptor of the memory in which this process says what it does (see ``watch.py``).
        process: number of this process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers the keyboard
    builder, threads, hung, patience = pickle.load(sys.stdin.buffer)
    slot = Slot(board, process, hung, patience)
    line = socket.socket(fileno=descriptor)
    pool = ThreadPoolExecutor(threads) if threads > 1 else None
    with suppress(ConnectionError):
        while (task := receive(line)) is not None:
            number, indices = task
            slot.begin_row(number)
            memory = SharedMemory()
            try:
                value = builder.build(indices, pool, memory, slot)
            except Exception as error:
                value = _failure(error)
            send(line, number, value, memory)
            slot.end_row()


def _failure(error: Exception) -> Failure:
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # one that cannot travel
        error = TriptychError(f"{type(error).__name__}: {error}")
    return Failure(error, trace)
