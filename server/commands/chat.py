"""Talk with a model in the terminal.

    sluice chat ./my-llama           a server of its own, for as long as the conversation lasts
    sluice chat --url http://host:8000

Answers come word by word; Ctrl-C stops one. A line that ends in a backslash goes on in the next, and a message of many
lines stands between lines of three quotes. /help lists the commands.
"""

from __future__ import annotations

import signal
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.commands import connected as connections
from server.commands.conversation import Conversation, Message
from server.commands.http_client import Client, Refused
from server.commands.reader import Reader
from server.commands.terminal import Style, safe
from server.settings_file import did_you_mean


def add_arguments(parser: ArgumentParser) -> None:
    parser.usage = "%(prog)s [MODEL-FOLDER | --url URL] [--system TEXT] [--set NAME=VALUE] [flags, all below]"
    parser.add_argument("folder", nargs="?", metavar="MODEL-FOLDER", help="The model or adapter to chat with.")
    parser.add_argument("--system", metavar="TEXT", default="", help="The system prompt.")
    parser.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="An option of /generate, such as temperature=0.7."
    )
    connections.add_arguments(parser)


def run(options: Namespace) -> int:
    # Also where whoever started this had it ignored: Ctrl-C is how an answer is stopped.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    conversation = Conversation(system=options.system, parameters=connections.assignments(options.set))
    with connections.connected(options, options.folder) as client:
        model = connections.find_model(client, options.name, ("generate",), "generate")
        return Chat(client, model["name"], conversation).run()


class Chat:
    """One conversation with one model, until its person leaves."""

    def __init__(self, client: Client, model: str, conversation: Conversation) -> None:
        self._client = client
        self._model = model
        self._conversation = conversation
        self._reader = Reader(Style.of(sys.stdout))
        # Where answers go into a file or a pipe, they go there alone.
        self._notes = sys.stdout if self._reader.is_terminal else sys.stderr
        self._style = Style.of(self._notes)
        self._num_failed = 0
        self._commands: dict[str, tuple[str, Callable[[str], bool | None]]] = {
            "/system": ("TEXT: set the system prompt; without TEXT: remove it", self._set_system),
            "/set": (
                "NAME VALUE: set an option of /generate, such as temperature 0.7; without NAME: show all",
                self._set,
            ),
            "/unset": ("NAME: restore the server's default", self._unset),
            "/regenerate": ("replace the last answer", self._regenerate),
            "/reset": ("begin anew", self._reset),
            "/save": ("FILE: save the conversation as a JSON body for /generate", self._save),
            "/help": ("this list", self._help),
            "/quit": ("quit (or Ctrl-D)", lambda _: True),
        }

    def run(self) -> int:
        """Until the input ends. 1 where it was no terminal and something failed."""
        if self._reader.is_terminal:
            self._note(f"{self._model} at {self._client.url}. /help lists the commands, Ctrl-C stops an answer.")
        while True:
            try:
                message = self._reader.message()
                if message is None or self._turn(message):
                    break
            except KeyboardInterrupt:
                self._note("\nUse /quit or Ctrl-D to quit.")
        return 1 if self._num_failed and not self._reader.is_terminal else 0

    def _turn(self, message: str) -> bool:
        """Whether it was the last one."""
        if not message.strip():
            return False
        if not message.startswith("/"):
            before = list(self._conversation.turns)
            self._conversation.say(message)
            # A question that was refused is not asked again with the next one.
            self._answer(otherwise=before)
            return False
        word, _, rest = message.partition(" ")
        if word not in self._commands:
            near = did_you_mean(word, self._commands)
            self._problem(f"Unknown command {word}.{near} To send it as a message, begin with a space.")
            return False
        return bool(self._commands[word][1](rest.strip()))

    def _answer(self, otherwise: list[Message]) -> None:
        """Stream one, keep it, and tell how fast it came. Without one the turns are ``otherwise``."""
        answer = Answer()
        try:
            for event in self._client.stream("/generate", self._conversation.body(self._model)):
                self._show(answer.add(event))
        except KeyboardInterrupt:
            answer.finish_reason = "stopped"
        except Refused as error:
            self._show("\n" if answer.text else "")
            self._num_failed += 1
            self._problem(_advice(error))
        if answer.num_tokens:
            self._show("\n")
            self._conversation.answer(answer.text)
            self._note(answer.summary())
        else:
            self._conversation.turns = otherwise

    def _set_system(self, text: str) -> None:
        self._conversation.system = text
        self._note("The system prompt is set." if text else "The system prompt is removed.")

    def _set(self, words: str) -> None:
        name, _, text = words.partition(" ")
        if not name:
            shown = [f"{name} {value}" for name, value in self._conversation.parameters.items()]
            self._note("\n".join(shown) or "Nothing is set: /set temperature 0.7")
        elif not text.strip():
            self._problem(f"{name} needs a value: /set {name} VALUE, or /unset {name}.")
        else:
            self._conversation.parameters[name] = connections.value_of(text.strip())

    def _unset(self, name: str) -> None:
        if self._conversation.parameters.pop(name, None) is None:
            self._problem(f"{name or 'Nothing'} is not set.{did_you_mean(name, self._conversation.parameters)}")

    def _regenerate(self, _: str) -> None:
        before = list(self._conversation.turns)
        if not self._conversation.take_back_answer():
            self._problem("There is no question to answer yet.")
            return
        self._answer(otherwise=before)

    def _reset(self, _: str) -> None:
        self._conversation.turns.clear()
        self._note("A new conversation.")

    def _save(self, name: str) -> None:
        if not name:
            self._problem("Usage: /save FILE")
            return
        try:
            self._conversation.save(Path(name).expanduser())
        except FileExistsError:
            self._problem(f"{name} already exists. Choose another name.")
        except OSError as error:
            self._problem(f"{name} cannot be written: {error.strerror}.")
        else:
            self._note(f"Saved as {name}.")

    def _help(self, _: str) -> None:
        width = max(map(len, self._commands))
        self._note("\n".join(f"{word:<{width}}  {text}" for word, (text, _) in self._commands.items()))

    def _show(self, text: str) -> None:
        sys.stdout.write(safe(text))
        sys.stdout.flush()

    def _note(self, text: str) -> None:
        self._notes.write(self._style.paint(text, "dim") + "\n")
        self._notes.flush()

    def _problem(self, text: str) -> None:
        self._notes.write(self._style.paint(safe(text), "red") + "\n")
        self._notes.flush()


def _advice(error: Refused) -> str:
    if error.code == "context_length_exceeded":
        return f"{error} Use /reset to start over."
    return str(error)


class Answer:
    """What has come of one answer, and when."""

    def __init__(self) -> None:
        self.text = ""
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self._started_s = time.monotonic()
        self._first_s = self._last_s = self._started_s

    def add(self, event: dict[str, Any]) -> str:
        """The text that the event brings."""
        self._last_s = time.monotonic()
        if not self.num_tokens:
            self._first_s = self._last_s
        self.num_tokens += 1
        if event.get("details"):
            self._read(event["details"])
        text: str = event["token"]["text"]
        self.text += text
        return text

    def _read(self, details: dict[str, Any]) -> None:
        """The server's own clock, which no network delays."""
        self.finish_reason = details["finish_reason"]
        self.num_tokens = details["generated_tokens"]
        timings = details["timings"]
        self._started_s, self._first_s, self._last_s = 0.0, timings["first_token_s"], timings["total_s"]

    def summary(self) -> str:
        """Number of tokens, their pace, and why it ended where that is not plain."""
        facts = [f"{self.num_tokens} tokens", f"first after {self._first_s - self._started_s:.2f} s"]
        if self.num_tokens > 1 and self._last_s > self._first_s:
            facts.insert(1, f"{(self.num_tokens - 1) / (self._last_s - self._first_s):.1f} tokens/s")
        if self.finish_reason == "length":
            facts.append("cut at its limit: /set max_new_tokens 1024")
        elif self.finish_reason == "stopped":
            facts.append("stopped")
        elif self.finish_reason is None:
            facts.append("broken off")
        return f"[{', '.join(facts)}]"
