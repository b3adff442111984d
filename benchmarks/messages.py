"""Every error and warning message of the package, so that one can read them all: file, line, class and text with {...} for what varies.

    python benchmarks/messages.py
    python benchmarks/messages.py --class DataError --out messages.txt
    python benchmarks/messages.py --check

Found by walking the syntax tree for ``raise Class(...)``, ``Class(...)`` that is raised later, and ``warnings.warn(..., Class)``, for the
classes of ``trifold.errors``. Parts of a message that are names, not text, are looked up where they are set to text in the same function
or module; else they stand as {name}. Ends with the number of messages by class and those without any text.

With ``--check`` it prints what breaks a rule, and exits with code 1 if anything does: a message begins with a capital, a quote or a name of
the package, ends with a full stop or a command, is not long, and names no argument, option or extra that does not exist.
"""

from __future__ import annotations

import argparse
import ast
import functools
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "trifold"
_LONGEST = 400  # characters, without what varies
_WORDS = {"a", "an", "the", "one", "two", "no", "not", "found", "both", "all", "some", "most"}  # are no names where a message begins
_SENTENCE = "(?:The|A|An|This|These|It|They|Pass|Leave|Give|Make|Use|Check|Choose|Remove|Type|Copy|Write) "  # how a sentence begins


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


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def classes() -> set[str]:
    """Names of our errors and warnings."""
    tree = _tree(SOURCE / "errors.py")
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def messages_of(file: Path, ours: set[str]) -> Iterator[Message]:
    """The messages of one file, from first to last line."""
    tree = _tree(file)
    shared = _tree(SOURCE / "errors.py")
    texts = {
        n.targets[0].id: n.value for n in (*shared.body, *tree.body) if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)
    }
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


def found_in(ours: set[str]) -> list[Message]:
    """All messages, by file and line."""
    found = [m for file in sorted(SOURCE.rglob("*.py")) if file.name != "errors.py" for m in messages_of(file, ours)]
    return sorted(found, key=lambda m: (m.file, m.line))


def broken(text: str, names: set[str], flags: set[str], extras: set[str]) -> list[str]:
    """The rules that a message breaks; none that is right breaks one, though not all that is wrong does.

    Args:
        text: As :class:`Message` has it.
        names: Of functions, of their arguments and of fields of classes of the package.
        flags: Options of the command line, ``"--out"``.
        extras: Of the package, ``"sweep"``.
    """
    said = _without_parts(text)
    typed = re.sub(r"(--[a-z-]+) \S+", r"\1", said)  # what follows an option is of the user's data
    out = []
    first = re.match(r"[a-z_]\w*", text)
    if first and (first[0] in _WORDS or not (first[0] in names or re.match(r"[.=\[(]", text[first.end() :]))):
        out.append(f"begins with {first[0]!r}, which is no name: use a capital")
    if not (re.search(r"[.}]\)?$", text.rstrip("'| ")) or re.search(r"[Tt]ype: \S", text)):
        out.append("ends without a full stop")
    out += [f"holds {what}" for what, pattern in _MARKS.items() if re.search(pattern, said)]
    if len(said) > _LONGEST:
        out.append(f"has {len(said)} characters; needed: up to {_LONGEST}")
    out += [
        f"names {name}=, an argument that is nowhere" for name in re.findall(r"(?<![\w.:/-])([a-z_]\w*)=(?!=)", typed) if name not in names
    ]
    own = re.sub(r"`[^`]*`", "", said)  # what is in backticks is a command of another program
    out += [f"names {flag}, an option that is nowhere" for flag in re.findall(r"--[a-z][a-z-]*", own) if flag not in flags]
    return out + [f"names the extra {name!r}, which is nowhere" for name in re.findall(r"trifold\[([a-z]+)\]", said) if name not in extras]


_MARKS = {
    "two spaces": r"(?<!\|)  ",
    "a space before a mark": r"\w [,;](?: |$)",
    "a sentence after a semicolon": f"; {_SENTENCE}",
    "a private name": r"(?<![\w.'-])_[a-z]\w*",
}  # what is wrong -> how it looks


def _without_parts(text: str) -> str:
    """The text without what varies, ``{name}``."""
    while (shorter := re.sub(r"\{[^{}]*\}", "…", text)) != text:
        text = shorter
    return text


def known() -> tuple[set[str], set[str], set[str]]:
    """Names, flags and extras, as :func:`broken` takes them."""
    names, flags = {"create_graph"}, {"--help"}  # the former is torch's
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(_tree(file)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                names.add(node.name)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
                if "commands" in file.parts:
                    flags.add("--" + node.arg.rstrip("_").replace("_", "-"))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
            elif isinstance(node, ast.Constant) and "cli" in file.parts and re.fullmatch("--[a-z][a-z-]*", str(node.value)):
                flags.add(str(node.value))
    project = tomllib.loads((SOURCE.parent.parent / "pyproject.toml").read_text())["project"]
    return names, flags, set(project["optional-dependencies"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--class", dest="kind", default="", help="only this class")
    parser.add_argument("--out", type=Path, help="a file instead of the screen")
    parser.add_argument("--check", action="store_true", help="only what breaks a rule; exit code 1 if there is any")
    asked = parser.parse_args()
    ours = classes()
    if asked.kind and asked.kind not in ours:
        parser.error(f"--class must be one of {', '.join(sorted(ours))}; found {asked.kind!r}")
    found = [m for m in found_in(ours) if asked.kind in ("", m.kind)]
    if asked.check:
        terms = known()
        wrong = [f"{m.file}:{m.line} {fault}\n    {m.text}" for m in found if m.text for fault in broken(m.text, *terms)]
        sys.stdout.write("".join(f"{line}\n" for line in [*wrong, f"{len(found)} messages, {len(wrong)} faults"]))
        raise SystemExit(bool(wrong))
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
