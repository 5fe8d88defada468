"""The socket that connections arrive at."""

from __future__ import annotations

import errno
import socket

from server.errors import EXIT_PORT, ConfigurationError

BACKLOG = 2048
NUM_ACCEPTED = 16
"""Connections that one turn of the event loop accepts."""
PEER_IDLE_S = 30
PEER_PROBE_S = 10
PEER_PROBES = 3
"""Probes a silent peer after 30 s, then every 10 s. Ends a connection whose peer acknowledges nothing for 30 s."""
UNREAD_BYTES = 128 * 1024


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, or a `ConfigurationError` that says why not."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            # Only for addresses still in TIME_WAIT. Never SO_REUSEPORT: two servers would share the port unseen.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _drop_silent_peers(listener)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"{host} port {port} cannot be used: {_bind_problem(error)}. Choose another --host or --port.",
            exit_code=EXIT_PORT,
        ) from None
    return listener


def accepting(listener: socket.socket) -> list[socket.socket]:
    """The listener and copies of it.

    libuv accepts one connection of a socket in each turn of the event loop. A busy loop has few turns, so that clients
    would wait for a connection much longer than for an answer.
    """
    return [listener, *(listener.dup() for _ in range(NUM_ACCEPTED - 1))]


def _drop_silent_peers(listener: socket.socket) -> None:
    """Connections inherit it: one whose peer has vanished without a word ends within a minute."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": PEER_IDLE_S,
        "TCP_KEEPINTVL": PEER_PROBE_S,
        "TCP_KEEPCNT": PEER_PROBES,
        "TCP_USER_TIMEOUT": 1000 * PEER_PROBE_S * PEER_PROBES,
        # How much the kernel holds for a client that reads nothing; without it, megabytes.
        "TCP_NOTSENT_LOWAT": UNREAD_BYTES,
    }
    for name, value in options.items():
        # Not every system has all of them.
        if (option := getattr(socket, name, None)) is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def _bind_problem(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return "the host name is unknown"
    if error.errno == errno.EADDRINUSE:
        return "the port is in use"
    if error.errno == errno.EACCES:
        return "permission denied"
    return (error.strerror or str(error)).lower()
