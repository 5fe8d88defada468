"""A conversation as the server takes it: its turns, and how answers are generated."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Message = dict[str, str]


@dataclass
class Conversation:
    """Turns of user and assistant in turn, after a system prompt where there is one."""

    system: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Options of /generate, under its names."""
    turns: list[Message] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.turns.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        self.turns.append({"role": "assistant", "content": text})

    def take_back_answer(self) -> bool:
        """Forget the last answer. Whether there was one."""
        return bool(self.turns and self.turns.pop())

    @property
    def messages(self) -> list[Message]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns]

    def body(self, model: str) -> dict[str, Any]:
        """Of a streaming request for the next answer."""
        return {"model": model, "messages": self.messages, "parameters": self.parameters, "stream": True}

    def save(self, path: Path) -> None:
        """Write it as a body that /generate takes. A file that is there is left alone: raises FileExistsError."""
        content = {"messages": self.messages, "parameters": self.parameters}
        with path.open("x", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, indent=2)
            file.write("\n")
