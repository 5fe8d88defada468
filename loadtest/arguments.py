"""The arguments that scripts share which compare the server with transformers."""

from __future__ import annotations

import argparse

from baseline import quiet
from served import ROOT

DEFAULT_MODEL = str(ROOT / "models/smollm2-135m-instruct")


def parse(parser: argparse.ArgumentParser, *, new_tokens: int) -> argparse.Namespace:
    """The arguments; transformers is quiet from now on."""
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is reported; one more warms up")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=new_tokens)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("serve_flags", nargs=argparse.REMAINDER, help="after --: flags for sluice serve")
    args = parser.parse_args()
    args.serve_flags = [flag for flag in args.serve_flags if flag != "--"]
    quiet()
    return args
