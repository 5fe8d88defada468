"""Chunked bodies, whatever pieces they arrive in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.api.http.framing import ChunkedBody

extensions = st.sampled_from([b"", b";a", b"; a=b", b' ; a="b c";d'])
chunks = st.lists(st.tuples(st.binary(min_size=1, max_size=300), extensions), max_size=8)
trailers = st.lists(st.sampled_from([b"X: 1", b"Empty:", b"Sum: a b"]), max_size=3)


@given(chunks, trailers, st.binary(max_size=20), st.lists(st.integers(1, 40), min_size=1))
def test_finds_data_and_end_in_any_split(parts, fields, following, sizes):
    written = b"".join(b"%x%b\r\n%b\r\n" % (len(data), extension, data) for data, extension in parts)
    written += b"0\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n"
    body, found, waiting = ChunkedBody(), b"", b""
    rest = written + following
    while not body.is_complete:
        size, sizes = sizes[0], sizes[1:] + sizes[:1]
        waiting, rest = waiting + rest[:size], rest[size:]
        data, num_taken = body.feed(waiting)
        found += data
        waiting = waiting[num_taken:]
    assert found == b"".join(data for data, _ in parts)
    assert waiting + rest == following
