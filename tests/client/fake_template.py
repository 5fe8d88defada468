"""A template whose workers are the fake ones: real forks, without the real imports.

``--threads`` makes it one that cannot fork; ``--deaf`` one that ends before it answers.
"""

from __future__ import annotations

import os
import sys
import threading

from server.worker import template
from tests import fake_worker


def preload() -> None:
    if "--threads" in sys.argv:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    if "--deaf" in sys.argv:
        os._exit(1)


if __name__ == "__main__":
    template.main(fake_worker.build, preload, sys.argv[-2:])
