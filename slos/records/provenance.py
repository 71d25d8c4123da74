"""What a row of results was made from: the code that its run imports, and the data.

A row stays valid while these are the same. It depends on its own policy and on no other one: an
entry of `TABLES` leads to a policy's module for the runs of that policy alone. All of it is found
by reading imports, those in functions too; nothing is imported for it.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from slos.files import ROOT, data_digest, sources_digest

REGISTRY, TABLES = "slos.policies", ("POLICIES", "AS_PUBLISHED")


def digests(function: Callable[..., Any], root: Path = ROOT) -> dict[str, str]:
    """Of the rows that `function` makes of a case, by the case's policy; by "" of those of a case
    without one, which may run any.

    A function that is not of slos or workloads depends on all of them: it may import anything.
    """
    code, data, found = Code(root), data_digest(), {}
    if function.__module__ not in code.paths:
        return dict.fromkeys(("", *code.policies), sources_digest(root))
    for policy in ("", *code.policies):
        sha = hashlib.sha256(data.encode())
        for name, text in sorted(code.behind(function.__module__, function.__name__, policy)):
            sha.update(f"\0{name}\0".encode() + text)
        found[policy] = sha.hexdigest()[:12]
    return found


class Code:
    """The modules of slos and workloads under a root, each read once."""

    def __init__(self, root: Path) -> None:
        files = [p for top in ("slos", "workloads") for p in sorted((root / top).rglob("*.py"))]
        names = (".".join(p.relative_to(root).with_suffix("").parts) for p in files)
        self.paths = {n.removesuffix(".__init__"): p for n, p in zip(names, files, strict=True)}
        self.tree = cache(lambda name: ast.parse(self.paths[name].read_bytes()))
        self.whole = cache(lambda name: self.imported([self.tree(name)]))
        self.policies: dict[str, ast.expr] = {}  # what stands for each in the registry
        for statement in self.tree(REGISTRY).body if REGISTRY in self.paths else ():
            table = getattr(statement, "value", None)
            if {*TABLES} & _binds(statement).keys() and isinstance(table, ast.Dict):
                keys = [ast.literal_eval(key) for key in table.keys if key]
                self.policies |= zip(keys, table.values, strict=True)

    def behind(self, module: str, function: str, policy: str) -> Iterator[tuple[str, bytes]]:
        """Names and texts of the modules that a run imports, and of the JSON files next to
        them that they name.

        Of two modules only a part counts: of the function's own what it uses, so that a study's
        charts do not, and of the registry all but the entries of other policies.
        """
        entries = [self.policies[policy]] if policy else [*self.policies.values()]
        registered = [n for e in entries for n in _names(e)]
        seen: set[str] = set()
        todo = [module]
        while todo:
            if (name := todo.pop()) in seen:
                continue
            seen.add(name)
            part: list[ast.AST] | None = None
            if name == module:
                part = used(self.tree(name), [function])
            elif name == REGISTRY and entries:
                own = [b for s in self.tree(name).body if not _imports(s) for b in _binds(s)]
                part = [*entries, *used(self.tree(name), [*own, *registered], TABLES)]
            if part is None:
                todo, text = [*todo, *self.whole(name)], self.paths[name].read_bytes()
            else:
                todo += self.imported(part)
                text = "\n".join(map(ast.unparse, part)).encode()
            yield name, text
            for file in sorted(set(re.findall(rb"[\w-]+\.json", text))):
                beside = self.paths[name].parent / file.decode()
                yield from [(file.decode(), beside.read_bytes())] if beside.exists() else ()

    def imported(self, nodes: Iterable[ast.AST]) -> set[str]:
        """The modules of ours that these import: of `from a import b`, a.b if that is one, else
        a."""
        found = set()
        for node in (n for top in nodes for n in ast.walk(top)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    found.add(inner if inner in self.paths else str(node.module))
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        return found & self.paths.keys()


def used(tree: ast.Module, wanted: Iterable[str], without: Collection[str] = ()) -> list[ast.AST]:
    """The top-level statements that bind the `wanted` names, and those that these use in turn; of
    an import the names in question alone."""
    bound: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for name, piece in _binds(statement).items():
            bound.setdefault(name, []).append(piece)
    found, todo = {}, [*wanted]
    while todo:
        if (name := todo.pop()) not in found and name in bound and name not in without:
            found[name] = bound[name]
            todo += [n for piece in bound[name] for n in _names(piece)]
    return [piece for name in sorted(found) for piece in found[name]]


def _imports(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Import | ast.ImportFrom)


def _names(node: ast.AST) -> list[str]:
    return [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]


def _binds(statement: ast.stmt) -> dict[str, ast.stmt]:
    """What a top-level statement binds, and the part of it that does."""
    if isinstance(statement, ast.ImportFrom):
        return {
            a.asname or a.name: ast.ImportFrom(statement.module, [a], 0) for a in statement.names
        }
    if isinstance(statement, ast.Import):
        return {(a.asname or a.name).split(".")[0]: ast.Import([a]) for a in statement.names}
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name: statement}
    stored = [n for n in ast.walk(statement) if isinstance(n, ast.Name)]
    return {n.id: statement for n in stored if isinstance(n.ctx, ast.Store)}
