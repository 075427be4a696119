"""Read rows of JSON that are not lines: a list, objects over several lines, and a list under a key of an object."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO

from lora_chat.data.reading.json_window import Element, InvalidJsonError, JsonWindow
from lora_chat.data.reading.raw_row import RawRow
from lora_chat.system.strict_json import is_nested_too_deeply

IsRow = Callable[[Mapping[str, object]], bool]
"""Whether an object is a row in a known format, or has the columns of the recipe."""

_TEXT_ROW_KEYS = {"text"}
_LIST_NAMES = frozenset(
    {
        "data",
        "rows",
        "train",
        "training",
        "examples",
        "items",
        "records",
        "samples",
        "instances",
        "dataset",
        "documents",
    }
)
"""Usual names of the list of rows in an object."""
_SPEAKER_KEYS = frozenset({"role", "from", "speaker", "author"})
_MAX_KEYS = 1000


@dataclass(frozen=True)
class RowList:
    """The list of rows in an object."""

    key: str
    is_split: bool = False
    """Whether other lists beside it are other splits."""


def read_json_list(file: IO[bytes]) -> Iterator[RawRow]:
    """Yield the elements of a JSON list."""
    window = JsonWindow(file)
    yield from _to_rows(_read_whole_list(window))


def _read_whole_list(window: JsonWindow) -> Iterator[Element]:
    """Yield the elements of the list that a file consists of."""
    window.peek()
    yield from window.iterate_list()
    if window.peek():
        raise InvalidJsonError(window.line, "there is more after the end of the list")


def read_json_objects(open_file: Callable[[], IO[bytes]], is_row: IsRow) -> Iterator[RawRow]:
    """Yield objects that follow each other, or the elements of the list under a key of the only object."""
    try:
        with open_file() as file:
            row_list = _find_row_list(JsonWindow(file), is_row)
    except InvalidJsonError as error:
        yield RawRow(error.line, fault=str(error), ends_file=True)
        return
    with open_file() as file:
        window = JsonWindow(file)
        notes = () if row_list is None else ("split_list" if row_list.is_split else "row_list",)
        elements = _read_objects(window) if row_list is None else _read_list_under(window, row_list.key)
        yield from _to_rows(elements, notes)


def _read_objects(window: JsonWindow) -> Iterator[Element]:
    """Yield the values that follow each other in a file."""
    while window.peek():
        line = window.line
        value, size = window.decode_element()
        yield line, value, size
        if window.peek() == ",":  # objects with commas between them, copied from a list
            window.consume()


def _read_list_under(window: JsonWindow, wanted: str) -> Iterator[Element]:
    """Yield the elements of the list under one key of an object."""
    window.peek()
    for key in window.iterate_keys():
        if key == wanted and window.peek() == "[":
            yield from window.iterate_list()
        else:
            _skip_value(window)


def _skip_value(window: JsonWindow) -> object:
    """Skip a value, element by element if it is a list; return the value, or a list with the first element."""
    if window.peek() != "[":
        return window.decode_element()[0]
    first: list[object] = []
    for _, value, _ in window.iterate_list():
        first = first or [value]
    return first


def _find_row_list(window: JsonWindow, is_row: IsRow) -> RowList | None:
    """Return the list of rows in the first object; None if the object itself is a row, or others follow it.

    Raises InvalidJsonError for several lists of which each could be the rows.
    """
    values: dict[str, object] = {}
    window.peek()
    line = window.line
    for key in window.iterate_keys():
        value = _skip_value(window)
        if key in values:
            raise InvalidJsonError(line, f"has the key {key!a} twice")
        if len(values) >= _MAX_KEYS:
            raise InvalidJsonError(line, f"has more than {_MAX_KEYS:,} keys")
        values[key] = value
    if window.peek():
        return None
    firsts = {key: value[0] for key, value in values.items() if isinstance(value, list) and value}
    objects = {
        key: first for key, first in firsts.items() if isinstance(first, dict) and not _SPEAKER_KEYS & first.keys()
    }
    known = [key for key, first in objects.items() if is_row(first) and _is_list_of_rows(key, first, values)]
    if not known and is_row(values):
        return None
    names = known or [key for key in objects if key.lower() in _LIST_NAMES] or [*objects]
    if len(names) <= 1:
        return RowList(names[0]) if names else None
    train = [key for key in names if key.lower() in ("train", "training")]
    if len(train) == 1:
        return RowList(train[0], is_split=True)
    shown = ", ".join(ascii(key) for key in names[:8])
    raise InvalidJsonError(
        line, f"has lists of rows under {shown}; write the list that is meant to a file of that list only"
    )


def _is_list_of_rows(key: str, first: Mapping[str, object], values: Mapping[str, object]) -> bool:
    """Return whether a list can be the rows: objects with a text are often documents beside a question."""
    return (
        not (_TEXT_ROW_KEYS & first.keys() and "messages" not in first)
        or key.lower() in _LIST_NAMES
        or len(values) == 1
    )


def _to_rows(elements: Iterator[Element], notes: tuple[str, ...] = ()) -> Iterator[RawRow]:
    """Yield rows; if the first two elements are on one line, the numbers of elements take the place of lines."""
    first: Element | None = None
    is_numbered, number = False, 0
    try:
        for element in elements:
            number += 1
            if number == 1:
                first = element
                continue
            if first:
                is_numbered = first[0] == element[0]
                yield _to_row(first, 1 if is_numbered else None, notes)
                first = None
            yield _to_row(element, number if is_numbered else None, notes)
        if first:
            yield _to_row(first, None, notes)
    except InvalidJsonError as error:
        if first:
            is_numbered = first[0] == error.line
            yield _to_row(first, 1 if is_numbered else None, notes)
        line = number + 1 if is_numbered else error.line
        yield RawRow(line, fault=str(error), ends_file=True, is_element=is_numbered)


def _to_row(element: Element, number: int | None, notes: tuple[str, ...]) -> RawRow:
    """Return an element as a row, under its number or its line."""
    line, value, size = element
    location, is_element = number or line, number is not None
    if is_nested_too_deeply(value):
        return RawRow(location, fault="is nested too deeply", is_element=is_element)
    return RawRow(location, value, size=size, is_element=is_element, notes=notes)
