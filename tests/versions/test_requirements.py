"""Both ends of the supported versions are those of pyproject.toml."""

from __future__ import annotations

from tests.versions.requirements import RANGES, TEST_TOOLS, requirements


def test_the_oldest_end_pins_the_lowest_release_of_each_range_and_nothing_else() -> None:
    oldest, newest = requirements("oldest"), requirements("newest")
    pinned = [line for line in oldest if line not in newest]
    assert [line.partition("==")[0] for line in pinned] == list(RANGES)
    assert all(line.endswith(".*") for line in pinned)
    assert len(oldest) == len(newest)


def test_every_tool_of_the_tests_is_installed_at_both_ends() -> None:
    for end in ("oldest", "newest"):
        lines = requirements(end)
        assert all(any(line.startswith(f"{tool}>=") for line in lines) for tool in TEST_TOOLS)
