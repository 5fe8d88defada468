"""Whether an error says that a file could not be written, whatever library raised it."""

from __future__ import annotations

import errno
import os

ERRNOS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR,
    errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTEMPTY,
)  # fmt: skip
TEXTS = {os.strerror(number).lower(): number for number in ERRNOS} | {
    f"(os error {number})": number for number in ERRNOS
}
"""As Rust's libraries write them."""
OF_TORCH = ("pytorchstreamwriter failed", "file write failed", "unexpected pos")


def write_problem(error: BaseException | None) -> str | None:
    """What is wrong, in a few words.

    >>> write_problem(Exception("No space left on device (os error 28)"))
    'no space left on device'
    >>> write_problem(ValueError("some mistake"))
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in ERRNOS:
            return os.strerror(error.errno).lower()
        text = str(error).lower()
        if number := next((number for part, number in TEXTS.items() if part in text), None):
            return os.strerror(number).lower()
        if any(part in text for part in OF_TORCH):
            return "a file could not be written to its end; is the disk full?"
        error = error.__cause__ or error.__context__
    return None
