"""The commands of ``sluice``, a module each, imported only when that command runs.

A module's docstring is its help; ``add_arguments`` is light, and what is heavy is imported in ``run``.
"""
