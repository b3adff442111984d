"""Every error and warning message of the package, so that one can read them all: file, line, class and text with {...} for what varies.

    python benchmarks/messages.py
    python benchmarks/messages.py --class DataError --out messages.txt

Found by walking the syntax tree for ``raise Class(...)``, ``Class(...)`` that is raised later, and ``warnings.warn(..., Class)``, for the
classes of ``trifold.errors``. Parts of a message that are names, not text, are looked up where they are set to text in the same function
or module; else they stand as {name}. Ends with the number of messages by class and those without any text.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "trifold"


@dataclass(frozen=True)
class Message:
    """One place that raises or warns.

    Args:
        file: Relative to src/trifold.
        line: Number.
        kind: Name of the class.
        text: As a user reads it, {...} for what varies; empty if it is made elsewhere.
    """

    file: str
    line: int
    kind: str
    text: str


def classes() -> set[str]:
    """Names of our errors and warnings."""
    tree = ast.parse((SOURCE / "errors.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def messages_of(file: Path, ours: set[str]) -> Iterator[Message]:
    """The messages of one file, from first to last line."""
    tree = ast.parse(file.read_text())
    texts = {n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)}
    for scope in [tree, *(n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))]:
        known = dict(texts)
        own = list(_within(scope))
        named = [(n.targets[0].id, n.value) for n in own if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)]
        often = Counter(name for name, _ in named)  # a name that is set twice has no one text
        known = {k: v for k, v in known.items() if k not in often} | {k: v for k, v in named if often[k] == 1}
        for node in own:
            if not isinstance(node, ast.Call):
                continue
            kind = _name(node.func)
            if kind in ours:
                yield Message(str(file.relative_to(SOURCE)), node.lineno, kind, _text(node.args[0], known) if node.args else "")
            elif kind == "warn":
                category = [_name(a) for a in [*node.args[1:], *(k.value for k in node.keywords)]]
                if set(category) & ours and node.args:
                    yield Message(str(file.relative_to(SOURCE)), node.lineno, "TrifoldWarning", _text(node.args[0], known))


def _within(scope: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a scope, without those of functions within it."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from _within(child)


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _text(node: ast.AST, known: dict[str, ast.AST], depth: int = 0) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, known, depth) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        inner = node.value
        if isinstance(inner, ast.Name) and inner.id in known and depth < 3 and _textual(known[inner.id]):
            return _text(known[inner.id], known, depth + 1)
        return "{" + ast.unparse(inner) + "}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, known, depth) + _text(node.right, known, depth)
    if isinstance(node, ast.IfExp):
        return f"{_text(node.body, known, depth)} | {_text(node.orelse, known, depth)}"
    if isinstance(node, ast.Name) and node.id in known and depth < 3:
        return _text(known[node.id], known, depth + 1)
    return "{" + ast.unparse(node) + "}"


def _textual(node: ast.AST) -> bool:
    if isinstance(node, ast.IfExp):
        return _textual(node.body) or _textual(node.orelse)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--class", dest="kind", default="", help="only this class")
    parser.add_argument("--out", type=Path, help="a file instead of the screen")
    asked = parser.parse_args()
    ours = classes()
    if asked.kind and asked.kind not in ours:
        parser.error(f"--class must be one of {', '.join(sorted(ours))}; found {asked.kind!r}")
    found = [m for file in sorted(SOURCE.rglob("*.py")) if file.name != "errors.py" for m in messages_of(file, ours)]
    found = sorted((m for m in found if asked.kind in ("", m.kind)), key=lambda m: (m.file, m.line))
    lines = [f"{m.file}:{m.line} {m.kind}\n    {m.text or '(no text)'}" for m in found]
    counts = Counter(m.kind for m in found)
    lines += ["", f"{len(found)} messages: " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common())]
    text = "\n".join(lines) + "\n"
    if asked.out:
        asked.out.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
