"""The worker's end of the socket pair: blocking while there is nothing to do, never between steps.

Knows frames and their arrival; nothing of what they ask for.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Sequence

from server import framing
from server.protocol import Command, Reply

READ_BYTES = 1 << 18


class Connection:
    """Commands in, replies out.

    The front reads always, and keeps its own writes in memory, so a blocking ``send`` ends when the front reads on
    or when it is gone.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.setblocking(True)
        self._decoder = framing.command_decoder()

    def receive(self, *, wait: bool) -> list[Command] | None:
        """All commands that have arrived; with ``wait``, at least one. None when the front has closed."""
        commands: list[Command] = []
        while True:
            block = wait and not commands
            try:
                data = self._socket.recv(READ_BYTES, 0 if block else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return commands
            except ConnectionError:
                return None
            if not data:
                return None
            commands += self._decoder.feed(data)

    def send(self, replies: Sequence[Reply]) -> None:
        """One frame. A front that is gone is noticed by the next ``receive``."""
        try:
            self._socket.sendall(framing.encode(replies))
        except ConnectionError:
            return

    def exit_with_front(self) -> None:
        """From now on, end the process as soon as the front is gone, also in the middle of a load or a step."""
        threading.Thread(target=self._exit_on_hang_up, name="hang-up", daemon=True).start()

    def _exit_on_hang_up(self) -> None:
        # A hang-up is reported whatever is asked for, and also while commands lie unread before it;
        # asking for nothing else, this thread never takes the interpreter from a running step.
        poll = select.poll()
        poll.register(self._socket, 0)
        poll.poll()
        os._exit(0)
