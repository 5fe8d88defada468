"""A recognised decoder as a short list of fused calls, about nine a layer, without the model's own modules.

`server.modules` finds out what a module computes, writes it down as a layout, turns the layout's weights into packed
products and releases the module's own; `check` compares every layer with the module's; `runner` runs it,
and `chained` makes one call of all its layers where all that they do is kernels.
"""

from server.engine.executors.fused.prepare import Prepared, prepare
from server.engine.executors.fused.runner import FusedRunner

__all__ = ["FusedRunner", "Prepared", "prepare"]
