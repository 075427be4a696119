"""Replace every expression of a chat template that could look at later messages by a call that raises an error."""

from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from lora_chat.data.encoding.message_lists import (
    LookaheadError,
    find_loop,
    is_count,
    is_namespace_call,
    starts_fixed,
)

OUTSIDE, IN_MACRO = -1, -2
"""Places of a node that is in no loop over messages, and of one in a macro."""
_LOOP_FIELDS = {"index", "index0", "first", "previtem", "changed", "cycle", "depth", "depth0"}
"""Attributes of `loop` that do not depend on later messages."""
_LAZY_FILTERS = {"map", "select", "reject", "selectattr", "rejectattr", "unique", "reverse", "batch", "slice", "items"}
"""Filters whose result can be read once, which is safe only if it is read at the same place."""
_READING_FILTERS = {"list", "join", "first", "sum", "sort", "last", "min", "max"}
"""Filters that read such a result."""
_FILTERS = _LAZY_FILTERS | _READING_FILTERS
_FILTERS |= {"abs", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "float", "format"}
_FILTERS |= {"forceescape", "groupby", "indent", "int", "length", "lower", "pprint", "replace", "round", "safe"}
_FILTERS |= {
    "string",
    "striptags",
    "title",
    "tojson",
    "trim",
    "truncate",
    "upper",
    "urlencode",
    "wordcount",
    "wordwrap",
}
"""Filters whose result depends on nothing but their arguments."""
FUNCTIONS = {"raise_exception", "strftime_now", "range", "dict"}
HIDDEN_STATE = {"self", "caller", "cycler", "joiner", "lipsum", "namespace", "loop"}
"""Names that may carry state or leave the analysis; their other uses are known below."""


class Trapper(NodeTransformer):
    """Replacement of every expression that could look ahead."""

    def __init__(
        self,
        trap: str,
        lists: set[str],
        namespaces: set[str],
        macros: set[str],
        loops: list[nodes.For],
        writes: dict[str, set[int]],
    ) -> None:
        self._trap, self._lists, self._namespaces, self._macros = trap, lists, namespaces, macros
        self._loops, self._writes = loops, writes
        self._where = OUTSIDE
        self._loop_is_over_messages = True
        """Whether `loop` may be the variable of a loop over messages."""

    def _raise(self, node: nodes.Node) -> nodes.Node:
        return nodes.Call(nodes.Name(self._trap, "load"), [], [], None, None).set_lineno(node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Visit a loop; one over messages sets the place of its body."""
        before = self._where, self._loop_is_over_messages
        number = find_loop(node, self._loops)
        if number is None:
            node.iter = self._visit_read_once(node.iter)
            if node.test:
                node.test = self.visit(node.test)
            node.else_ = [self.visit(inner) for inner in node.else_]
            self._loop_is_over_messages = False
        else:
            self._where, self._loop_is_over_messages = number, True
        node.body = [self.visit(inner) for inner in node.body]
        self._where, self._loop_is_over_messages = before
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        """Visit a macro, which may be called from everywhere."""
        before = self._where, self._loop_is_over_messages
        self._where, self._loop_is_over_messages = IN_MACRO, True
        self.generic_visit(node)
        self._where, self._loop_is_over_messages = before
        return node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        """Visit an assignment; lists of messages and namespaces may be given a name."""
        if is_namespace_call(node.node):
            assert isinstance(node.node, nodes.Call)
            node.node.args = [self.visit(inner) for inner in node.node.args]
            node.node.kwargs = [self.visit(inner) for inner in node.node.kwargs]
            if node.node.dyn_args or node.node.dyn_kwargs:
                raise LookaheadError("a namespace gets unpacked values")
        elif not (isinstance(node.target, nodes.Name) and node.target.name in self._lists):
            node.node = self.visit(node.node)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Visit a comparison; that there are messages at all is known."""
        if _says_that_messages_exist(node, self._lists):
            return node
        return self.generic_visit(node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """Visit an index; one from the beginning of the messages is the same for every dialogue that has it."""
        if isinstance(node.node, nodes.Name):
            name, key = node.node.name, node.arg
            if name in self._lists:
                is_fixed = is_count(key) or (isinstance(key, nodes.Slice) and is_count(key.stop) and starts_fixed(key))
                return node if is_fixed else self._raise(node)
            if name in self._namespaces or name == "loop":
                is_text = isinstance(key, nodes.Const) and isinstance(key.value, str)
                attribute = str(key.value) if isinstance(key, nodes.Const) else ""
                return node if is_text and self._may_read(name, attribute) else self._raise(node)
        return self.generic_visit(node)

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:
        """Visit an attribute of a namespace, of `loop` or of a value."""
        if isinstance(node.node, nodes.Name) and (node.node.name in self._namespaces or node.node.name == "loop"):
            return node if self._may_read(node.node.name, node.attr) else self._raise(node)
        return self.generic_visit(node)

    def _may_read(self, name: str, attribute: str) -> bool:
        """Return whether an attribute of a namespace or of `loop` has a known value here."""
        if name == "loop":
            return not self._loop_is_over_messages or attribute in _LOOP_FIELDS
        return self._writes.get(attribute, set()) <= ({self._where} if self._where >= 0 else set())

    def visit_Name(self, node: nodes.Name) -> nodes.Node:
        """Visit a name that is used as a whole."""
        hidden = self._lists | self._namespaces | HIDDEN_STATE
        return self._raise(node) if node.ctx == "load" and node.name in hidden else node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        """Visit a test; whether a list of messages or a function is defined does not depend on its content."""
        is_known = node.name in ("defined", "undefined") and isinstance(node.node, nodes.Name)
        return node if is_known else self.generic_visit(node)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        """Visit a filter whose result is kept."""
        return self._visit_filter(node, read_once=False)

    def _visit_read_once(self, node: nodes.Node) -> nodes.Expr:
        """Visit a value that is read here and nowhere else."""
        changed: Any = self._visit_filter(node, read_once=True) if isinstance(node, nodes.Filter) else self.visit(node)
        result: nodes.Expr = changed
        return result

    def _visit_filter(self, node: nodes.Filter, *, read_once: bool) -> nodes.Node:
        """Visit a filter, and the value that it reads."""
        is_known = node.name in _FILTERS and (node.name not in _LAZY_FILTERS or read_once)
        if not is_known or node.node is None or node.dyn_args or node.dyn_kwargs:
            return self._raise(node)
        if node.name == "map" and node.args and not _names_known_filter(node.args[0]):
            return self._raise(node)
        reads_all = node.name in _READING_FILTERS or (node.name in _LAZY_FILTERS and read_once)
        inner = self._visit_read_once(node.node) if reads_all else self.visit(node.node)
        node.args = [self.visit(argument) for argument in node.args]
        node.kwargs = [self.visit(argument) for argument in node.kwargs]
        node.node = inner
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        """Visit a call of a known function, a macro or a method of a value."""
        if isinstance(node.node, nodes.Name):
            if node.node.name not in FUNCTIONS | self._macros:
                return self._raise(node)
        elif isinstance(node.node, nodes.Getattr):
            node.node = self.visit(node.node)
        else:
            return self._raise(node)
        for name in ("args", "kwargs"):
            setattr(node, name, [self.visit(argument) for argument in getattr(node, name)])
        return self._raise(node) if node.dyn_args or node.dyn_kwargs else node


def _says_that_messages_exist(node: nodes.Compare, lists: set[str]) -> bool:
    """Return whether a comparison is `messages | length != 0` or `> 0`."""
    counted = node.expr
    return (
        isinstance(counted, nodes.Filter)
        and counted.name in ("length", "count")
        and isinstance(counted.node, nodes.Name)
        and counted.node.name in lists
        and len(node.ops) == 1
        and node.ops[0].op in ("ne", "gt")
        and isinstance(node.ops[0].expr, nodes.Const)
        and node.ops[0].expr.value == 0
    )


def _names_known_filter(node: nodes.Node) -> bool:
    """Return whether the first argument of `map` is a filter without state."""
    return isinstance(node, nodes.Const) and node.value in _FILTERS - _LAZY_FILTERS


def raise_lookahead(*_: object) -> None:
    """Raise LookaheadError; the function that replaces what could look ahead."""
    raise LookaheadError("the template looks at later messages")
