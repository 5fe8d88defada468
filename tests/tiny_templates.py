"""Two templates for a server over a tiny decoder: one that ends at once, and one that takes as long as asked."""

from __future__ import annotations

from pathlib import Path

STORY = """
task = "generate"
text = "The {{ hero }} and the {{ others|join(' and ') }}:"
[variables.hero]
[variables.others]
type = "list"
default = ["mill"]
[parameters]
max_new_tokens = 5
do_sample = false
"""
SLOW = """
task = "generate"
text = "{% for i in range(count) %}{% for j in range(count) %}{% endfor %}{% endfor %}x"
[variables.count]
type = "integer"
default = 1
maximum = 99999
"""


def write_templates(folder: Path) -> Path:
    """Write them as ``story`` and ``slow``; the folder."""
    (folder / "story.toml").write_text(STORY)
    (folder / "slow.toml").write_text(SLOW)
    return folder
