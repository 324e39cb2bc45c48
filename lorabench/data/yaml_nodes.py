"""Reading of YAML nodes with errors that name file and line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lorabench.base import UserError


@dataclass(frozen=True)
class NodeReader:
    """Reader of the nodes of a YAML file. Values of a wrong type are errors with the line of their node."""

    path: Path

    def fail(self, node: Node, message: str) -> NoReturn:
        """Raise UserError with the line of a node."""
        raise UserError(f"{self.line(node)}: {message}")

    def line(self, node: Node) -> str:
        """Return file and line of a node."""
        return f"{self.path}:{node.start_mark.line + 1}"

    def mapping(self, node: Node, known: Sequence[str] | None, required: Sequence[str], name: str) -> dict[str, Node]:
        """Return the values of a mapping by key.

        Args:
            node: The mapping.
            known: Allowed keys; None allows any.
            required: Keys that must be there.
            name: Name of the mapping in messages.
        """
        if not isinstance(node, MappingNode):
            self.fail(node, f"{name} must have keys; write {': ..., '.join(known or ('name',))}: ...")
        found: dict[str, Node] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self.fail(key, f"a key of {name} must be a word")
            if key.value in found:
                self.fail(key, f"{key.value!r} is twice in {name}; write it once")
            if known is not None and key.value not in known:
                near = difflib.get_close_matches(key.value, known, n=1)
                self.fail(key, f"{name} has no key {key.value!r}; write {near[0] if near else ' or '.join(known)}")
            found[key.value] = value
        if missing := next((key for key in required if key not in found), None):
            self.fail(node, f"{name} lacks {missing}; write {missing}: ...")
        return found

    def items(self, node: Node) -> list[Node]:
        """Return the items of a list."""
        if not isinstance(node, SequenceNode):
            self.fail(node, "must be a list; write [a, b]")
        return node.value

    def text(self, node: Node) -> str:
        """Return the text of a node."""
        plain = isinstance(node, ScalarNode) and not node.tag.endswith((":null", ":bool"))
        if not plain or not node.value.strip():
            self.fail(
                node, f"{self.shown(node)} is not text; write a word, in quotes if YAML reads it as something else"
            )
        return node.value.strip()

    def flag(self, node: Node) -> bool:
        """Return a value true or false."""
        if not isinstance(node, ScalarNode) or not node.tag.endswith(":bool"):
            self.fail(node, f"{self.shown(node)} is neither true nor false; write one of them")
        return bool(yaml.SafeLoader.bool_values[node.value.lower()])

    def shown(self, node: Node) -> str:
        """Return the value of a node for messages."""
        return repr(node.value) if isinstance(node, ScalarNode) else "a list or a mapping"
