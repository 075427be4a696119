"""Change a chat template so that one rendering shows the text of every beginning of a dialogue.

The changed template writes a mark before each iteration of a loop over the messages and one after the loop. This gives
the texts of shorter dialogues only if an iteration never depends on later messages. Therefore every expression that
could look ahead (`loop.last`, `messages | length`, `messages[i + 1]`, the state that another loop left) is replaced by
a call that raises an error. If no such call is reached, a rendering of the first k messages runs through the same
steps, so that its text is the text before the loop, the text of its iterations, and the text after the loop.
Anything unknown counts as looking ahead.
"""

import secrets

from jinja2 import nodes

from lora_chat.data.encoding.lookahead_traps import FUNCTIONS, HIDDEN_STATE, IN_MACRO, Trapper
from lora_chat.data.encoding.message_lists import (
    LookaheadError,
    find_loop,
    find_message_lists,
    get_message_list,
    is_namespace_call,
)

_ALLOWED_NODES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Macro, nodes.Assign),
    *(nodes.AssignBlock, nodes.ExprStmt, nodes.Name, nodes.NSRef, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict),
    *(nodes.Pair, nodes.Keyword, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getitem, nodes.Getattr),
    *(nodes.Slice, nodes.Concat, nodes.Compare, nodes.Operand, nodes.BinExpr, nodes.UnaryExpr, nodes.Continue),
    nodes.Break,
)


class StepwiseRewriter:
    """Rewriter of the parsed template; raises LookaheadError for a statement that it does not know."""

    def __init__(self, template: nodes.Template) -> None:
        self.token = secrets.token_hex(16)
        """Start of the marks, which no template and no message can know."""
        self.trap = f"lookahead_{self.token}"
        """Name of the function that raises LookaheadError."""
        self.min_messages = 1
        """Number of messages from which every index and slice of the template finds the same messages."""
        self._template = template
        self._lists = find_message_lists(template)
        self._namespaces = {
            assign.target.name
            for assign in template.find_all(nodes.Assign)
            if isinstance(assign.target, nodes.Name) and is_namespace_call(assign.node)
        }
        self._macros = {macro.name for macro in template.find_all(nodes.Macro)}
        self._message_loops: list[nodes.For] = []

    def rewrite(self) -> nodes.Template:
        """Return the changed template."""
        self._check_nodes()
        self._collect_message_loops(self._template.body)
        self.min_messages += self._count_skipped_messages()
        writes = self._find_written_attributes()
        Trapper(self.trap, self._lists, self._namespaces, self._macros, self._message_loops, writes).visit(
            self._template
        )
        self._insert_marks(self._template)
        return self._template

    def _check_nodes(self) -> None:
        """Raise LookaheadError for nodes, names and assignments that the rewriting does not know."""
        for node in self._template.find_all(nodes.Node):
            if not isinstance(node, _ALLOWED_NODES):
                raise LookaheadError(type(node).__name__)
            if isinstance(node, nodes.NSRef) and node.name not in self._namespaces:
                raise LookaheadError("an attribute of an unknown object is set")
            if isinstance(node, nodes.Name) and node.ctx != "load":
                self._check_target(node)
            if isinstance(node, nodes.Macro) and node.name in self._lists | self._namespaces | HIDDEN_STATE:
                raise LookaheadError("a macro replaces a known name")
            if isinstance(node, nodes.AssignBlock) and node.filter is not None:
                raise LookaheadError("a filtered block")
        made = {id(a.target) for a in self._template.find_all(nodes.Assign) if is_namespace_call(a.node)}
        for name in self._template.find_all(nodes.Name):
            if name.ctx != "load" and name.name in self._namespaces and id(name) not in made:
                raise LookaheadError("a namespace is replaced")

    def _check_target(self, node: nodes.Name) -> None:
        """Raise LookaheadError if a name that is set has a meaning here; lists of messages are checked elsewhere."""
        if node.name in FUNCTIONS | HIDDEN_STATE | self._macros or node.name == self.trap:
            raise LookaheadError("a known name is replaced")

    def _collect_message_loops(self, body: list[nodes.Node]) -> None:
        """Collect the loops over messages outside of other loops, in their order, and check where lists are set."""
        for node in body:
            if isinstance(node, nodes.If):
                self._collect_message_loops(node.body)
                self._collect_message_loops([*node.elif_])
                self._collect_message_loops(node.else_)
            elif isinstance(node, nodes.For) and get_message_list(node.iter, self._lists) is not None:
                if node.test or node.recursive or node.else_ or not isinstance(node.target, nodes.Name):
                    raise LookaheadError("a loop over messages with a condition")
                if node.find(nodes.Break):
                    raise LookaheadError("a loop over messages that ends early")
                self._message_loops.append(node)

    def _count_skipped_messages(self) -> int:
        """Return the largest number of messages before those that indices and slices of the template mean."""
        starts, largest = 0, 0
        for item in self._template.find_all(nodes.Getitem):
            if not (isinstance(item.node, nodes.Name) and item.node.name in self._lists):
                continue
            if isinstance(item.arg, nodes.Slice):
                for bound in (item.arg.start, item.arg.stop):
                    starts += bound.value if isinstance(bound, nodes.Const) and isinstance(bound.value, int) else 0
            elif isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, int):
                largest = max(largest, item.arg.value)
        return starts + largest

    def _find_written_attributes(self) -> dict[str, set[int]]:
        """Return the places, other than outside, at which each attribute of a namespace is set."""
        writes: dict[str, set[int]] = {}
        roots: list[tuple[int, nodes.Node]] = [*enumerate(self._message_loops)]
        roots += [(IN_MACRO, macro) for macro in self._template.find_all(nodes.Macro)]
        for where, root in roots:
            for reference in root.find_all(nodes.NSRef):
                writes.setdefault(reference.attr, set()).add(where)
        return writes

    def _insert_marks(self, node: nodes.Node) -> None:
        """Insert a mark at the beginning of each loop's body, and one after the loop."""
        for name, body in [*node.iter_fields()]:
            if isinstance(body, list):
                changed: list[nodes.Node] = []
                for inner in body:
                    changed.append(inner)
                    number = find_loop(inner, self._message_loops)
                    if number is not None and isinstance(inner, nodes.For):
                        inner.body.insert(0, _make_output(f"{self.token}:{number};"))
                        changed.append(_make_output(f"{self.token}!{number};"))
                    elif isinstance(inner, nodes.If):
                        self._insert_marks(inner)
                setattr(node, name, changed)


def _make_output(text: str) -> nodes.Output:
    """Return a statement that writes a text."""
    return nodes.Output([nodes.TemplateData(text)])
