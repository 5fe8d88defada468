"""`python -m server.sandbox`: runs what clients may make slow, large or fatal, one call at a time, until it is killed.

Nothing is trusted of it: the front ends it when a call takes too long, and starts another when it is gone.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from server import framing
from server.sandbox import confinement, functions
from server.sandbox.messages import MAX_ANSWER_BYTES, Call, Refused, Reply, Returned, Started, call_decoder

READ_BYTES = 1 << 18
MAX_MESSAGE_CHARACTERS = 500
OUT_OF_MEMORY = Refused("It exceeds the memory limit.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer the calls that come over the inherited socket; return when the front is gone."""
    parser = argparse.ArgumentParser(
        prog="python -m server.sandbox", description="Internal: only the server starts it."
    )
    parser.add_argument("--fd", type=int, required=True, help="number of the inherited socket")
    fd: int = parser.parse_args(arguments).fd
    os.set_inheritable(fd, False)
    connection = socket.socket(fileno=fd)
    confinement.confine()
    serve(connection)


def serve(connection: socket.socket) -> None:
    """One answer for each call. After a call that ran out of memory the process is not used again."""
    decoder = call_decoder()
    connection.sendall(framing.encode([Started()]))
    while data := connection.recv(READ_BYTES):
        for call in decoder.feed(data):
            confinement.limit_processor_time(call.limit_s)
            reply = answer(call)
            connection.sendall(encoded(reply))
            if reply is OUT_OF_MEMORY:
                return


def encoded(reply: Reply) -> bytearray:
    """One frame, and not a longer one than the front takes."""
    frame = framing.encode([reply])
    if len(frame) <= MAX_ANSWER_BYTES:
        return frame
    return framing.encode([Refused(f"The result is longer than the limit of {MAX_ANSWER_BYTES} bytes.")])


def answer(call: Call) -> Reply:
    """The function's result. Whatever it raises is its arguments' fault: this process has no other work."""
    try:
        value: Any = functions.find(call.function)(*call.arguments)
    except MemoryError:
        return OUT_OF_MEMORY
    except RecursionError:
        return Refused("It is nested too deeply.")
    except ValueError as error:
        return Refused(str(error)[:MAX_MESSAGE_CHARACTERS])
    except Exception as error:
        return Refused(f"It fails: {error}"[:MAX_MESSAGE_CHARACTERS])
    return Returned(value)


if __name__ == "__main__":
    try:
        main()
    except ConnectionError:
        sys.exit(0)
