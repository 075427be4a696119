"""Find the lists of messages in a parsed chat template: `messages`, and its ends under other names."""

from jinja2 import nodes


class LookaheadError(Exception):
    """The template may depend on later messages, so that one rendering does not show shorter dialogues."""


def find_message_lists(template: nodes.Template) -> set[str]:
    """Return the names of the messages and of their ends; raises LookaheadError if one is also something else."""
    lists = {"messages"}
    assigns = [node for node in template.find_all(nodes.Assign) if isinstance(node.target, nodes.Name)]
    while True:
        more = {a.target.name for a in assigns if get_message_list(a.node, lists) is not None} - lists  # type: ignore[attr-defined]
        if not more:
            break
        lists |= more
    top_level = {id(node) for node in _iter_top_level(template.body)}
    for name in template.find_all(nodes.Name):
        if name.name in lists and name.ctx != "load":
            owner = next((a for a in assigns if a.target is name), None)
            if owner is None or id(owner) not in top_level or get_message_list(owner.node, lists) is None:
                raise LookaheadError("a list of messages is replaced")
    return lists


def find_loop(node: nodes.Node, loops: list[nodes.For]) -> int | None:
    """Return the number of a loop among loops, by identity, because equal loops are equal nodes."""
    return next((number for number, loop in enumerate(loops) if loop is node), None)


def _iter_top_level(body: list[nodes.Node]) -> list[nodes.Node]:
    """Return the statements outside of loops and macros."""
    result: list[nodes.Node] = []
    for node in body:
        result.append(node)
        if isinstance(node, nodes.If):
            result += _iter_top_level([*node.body, *node.elif_, *node.else_])
    return result


def get_message_list(node: nodes.Node, lists: set[str]) -> str | None:
    """Return the list's name if an expression is a list of messages or its end from a fixed index."""
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        if node.arg.stop is not None or not starts_fixed(node.arg):
            return None
        node = node.node
    return node.name if isinstance(node, nodes.Name) and node.ctx == "load" and node.name in lists else None


def starts_fixed(slice_: nodes.Slice) -> bool:
    """Return whether a slice starts at a fixed index and takes every message."""
    return slice_.step is None and (slice_.start is None or is_count(slice_.start))


def is_count(node: nodes.Node | None) -> bool:
    """Return whether a node is a constant index that is not negative."""
    return isinstance(node, nodes.Const) and type(node.value) is int and node.value >= 0


def is_namespace_call(node: nodes.Node) -> bool:
    """Return whether an expression makes a namespace."""
    return isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name == "namespace"
