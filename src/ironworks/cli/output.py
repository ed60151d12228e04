"""What a command writes: tables for people, one line of JSON for programs, progress beside both."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, TypeVar, cast

from protobuf import Message, message_to_json_value
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ironworks.model.units import NS_PER_MS, NS_PER_SECOND
from ironworks.sdk import Page

WIDE_COLUMNS = 250
"""Width of tables that no terminal shows: wide enough that no id is cut."""
_SPOKEN = {"vms": "VMs", "api_keys": "API keys"}
_T = TypeVar("_T")


def printable(text: str) -> str:
    """`text` without control characters: what a tenant wrote must not steer a terminal."""
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char) != "Cc"
        else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )


def state_name(state: Enum) -> str:
    """`running` for DEPLOYMENT_STATE_RUNNING."""
    return state.name.lower().replace("_", " ")


def when(at_ns: int) -> str:
    """UTC nanoseconds for people: `2026-11-23 11:30:24`; a dash for never."""
    if not at_ns:
        return "-"
    return datetime.fromtimestamp(at_ns // NS_PER_SECOND, UTC).strftime("%Y-%m-%d %H:%M:%S")


def duration(length_ns: int) -> str:
    """`350 ms`, `3.4 s`."""
    if length_ns < NS_PER_SECOND:
        return f"{length_ns // NS_PER_MS} ms"
    return f"{length_ns / NS_PER_SECOND:.1f} s"


def as_json(value: Message[Any] | Mapping[str, Any]) -> dict[str, Any]:
    """ProtoJSON with the names of the proto files; 64-bit integers are strings, as it says."""
    if not isinstance(value, Message):
        return {key: _part(part) for key, part in value.items()}
    answer: Any = message_to_json_value(value, use_proto_field_name=True, always_emit_implicit=True)
    return answer


def _part(part: object) -> object:
    return as_json(cast("Message[Any]", part)) if isinstance(part, Message) else part


class Output:
    """Answers of one command.

    Args:
        json: Whether the answer is JSON.
    """

    def __init__(self, *, json: bool) -> None:
        self.json = json
        terminal = sys.stdout.isatty()
        self._console = Console(highlight=False, width=None if terminal else WIDE_COLUMNS)
        self.progress = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """A line for people, on standard error; nothing in it is markup."""
        self.progress.print(printable(text), markup=False, soft_wrap=True)

    def plain(self, text: str) -> None:
        """A line of a log, on standard output, as it is."""
        self._console.print(printable(text), markup=False, soft_wrap=True)

    def line(self, value: Message[Any] | Mapping[str, Any]) -> None:
        """One line of JSON."""
        sys.stdout.write(json.dumps(as_json(value), ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def fields(self, value: Message[Any] | Mapping[str, Any], fields: Mapping[str, object]) -> None:
        """One thing: as JSON, or its fields one below the other."""
        if self.json:
            self.line(value)
            return
        table = _grid(("", ""))
        table.show_header = False
        for name, shown in fields.items():
            table.add_row(Text(name, style="bold"), Text(printable(str(shown))))
        self._console.print(table)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table for people."""
        table = _grid(columns)
        for row in rows:
            table.add_row(*(Text(printable(str(cell))) for cell in row))
        self._console.print(table)

    def listing(
        self,
        name: str,
        page: Page[_T],
        columns: Sequence[str],
        row: Callable[[_T], Sequence[object]],
    ) -> None:
        """A list: as JSON `{name: […], "next_page_token": …}`, or a table."""
        if self.json:
            items = [_part(item) for item in page]
            self.line({name: items, "next_page_token": page.next_page_token})
            return
        if not len(page):
            self.say(f"No {_SPOKEN.get(name, name)}.")
            return
        self.table(columns, [row(item) for item in page])
        if page.next_page_token:
            self.say(f"The first {len(page)}; there are more: give --limit.")


def _grid(columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
