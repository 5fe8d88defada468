from server.engine.executors.build import build_runner

__all__ = ["build_runner"]
