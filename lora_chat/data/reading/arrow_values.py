"""Convert Arrow rows to the JSON that they came from.

Arrow gives every struct all keys that any row has, so a null in a struct means a missing key here: Arrow cannot store
the difference. JSON text in a cell keeps its nulls.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lora_chat.system.strict_json import MAX_DEPTH

if TYPE_CHECKING:
    import pyarrow as pa

_Converter = Callable[[Any], Any]


class WholeFloat(float):
    """A whole number from a float column without fractions, which may have been an integer beside nulls."""


def convert_batch(batch: "pa.RecordBatch") -> list[dict[str, Any]]:
    """Return the rows of a batch; raises ValueError for values without form in Python and for deep nesting."""
    rows: list[dict[str, Any]] = batch.to_pylist()
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        convert = _find_converter(column.type) or _find_float_converter(column)
        if convert:
            for row in rows:
                if row[name] is not None:
                    row[name] = convert(row[name])
    return rows


def _find_converter(data_type: "pa.DataType", depth: int = 0) -> _Converter | None:
    """Return the conversion of a type with structs or maps inside; None for any other type."""
    from pyarrow import types

    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if types.is_struct(data_type):
        fields = [data_type.field(number) for number in range(data_type.num_fields)]
        converters = {field.name: _find_converter(field.type, depth + 1) for field in fields}
        return lambda value: {
            key: convert(inner) if (convert := converters[key]) else inner
            for key, inner in value.items()
            if inner is not None
        }
    if types.is_map(data_type):
        convert_item = _find_converter(data_type.item_type, depth + 1)
        return lambda pairs: _convert_map(pairs, convert_item)
    if types.is_list(data_type) or types.is_large_list(data_type) or types.is_fixed_size_list(data_type):
        convert_value = _find_converter(data_type.value_type, depth + 1)
        if convert_value:
            return lambda values: [None if value is None else convert_value(value) for value in values]
    return None


def _convert_map(pairs: list[tuple[Any, Any]], convert: _Converter | None) -> Any:
    """Return a map as an object; the pairs themselves if a key is not text or is there twice."""
    result = {key: convert(value) if convert and value is not None else value for key, value in pairs}
    return result if len(result) == len(pairs) and all(isinstance(key, str) for key in result) else pairs


def _find_float_converter(column: "pa.Array") -> _Converter | None:
    """Return the conversion of a column of floats: short digits of narrow floats, and a mark on whole numbers."""
    from pyarrow import types

    if not types.is_floating(column.type):
        return None
    digits = _shortest_digits if column.type.bit_width < 64 else float
    if all(value is None or value.is_integer() for value in column.to_pylist()):
        return lambda value: WholeFloat(digits(value))
    return digits


def _shortest_digits(value: float) -> float:
    """Return the number with the fewest digits that rounds to the same 32-bit float."""
    import numpy

    return float(str(numpy.float32(value)))
