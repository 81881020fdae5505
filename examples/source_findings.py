"""What ``source_census.py`` finds out from the facts of all files: plain functions, one each.

Their parameters are keys of the graph: the facts of one kind by file, or what another one found.
"""

from __future__ import annotations

import builtins
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from source_facts import KEPT, KINDS

LISTED = KEPT  # rows of a table that would be endless
LEAST_PUBLIC = 50  # definitions from which on a package's docstrings say something about it

ByFile = dict[str, Any]
"""Facts of one kind, by the path of the file."""

Finding = dict[str, Any]
"""A table with its title, and its headline."""


def largest_files(base: str, library_files: list[str], test_files: list[str]) -> Finding:
    """Files by size. Needs none of them parsed."""
    paths = [*library_files, *test_files]
    rows = [[Path(base, path).stat().st_size, path] for path in paths]
    return finding("Largest files", ["bytes", "file"], first(rows), "{1} has {0:,} bytes")


def lines(library_lines: ByFile, test_lines: ByFile) -> Finding:
    """Lines of the library and of its tests."""
    rows = []
    for part, counts in (("library", library_lines), ("tests", test_lines)):
        total = summed(counts)
        code = total["all"] - total["empty"] - total["comments"]
        rows.append([part, len(counts), total["all"], code, total["comments"], total["empty"]])
    columns = ["", "files", "lines", "code", "comments", "empty"]
    return finding("Lines", columns, rows, "{2:,} lines in {1:,} files of the {0}")


def largest_packages(library_lines: ByFile) -> Finding:
    """Packages and top-level modules by lines."""
    totals: Counter[str] = Counter()
    files = Counter(map(package_of, library_lines))
    for path, counts in library_lines.items():
        totals[package_of(path)] += counts["all"]
    rows = [[total, files[package], package] for package, total in totals.items()]
    columns = ["lines", "files", "package"]
    return finding("Largest packages", columns, first(rows), "{2} has {0:,} lines")


def constructs(library_kinds: ByFile, test_kinds: ByFile) -> Finding:
    """What the code is made of."""
    library, tests = summed(library_kinds), summed(test_kinds)
    rows = [[kind, library[kind], tests[kind]] for kind in KINDS]
    headline = "{1:,} {0} in the library, {2:,} in the tests"
    return finding("Made of", ["", "library", "tests"], rows, headline)


def most_imported(library_imports: ByFile, test_imports: ByFile) -> Finding:
    """Modules and packages by the files that import them, on load or later."""
    tests = importing_files(test_imports)
    rows = [[count, tests[name], name] for name, count in importing_files(library_imports).items()]
    columns = ["library files", "test files", "import"]
    return finding("Most imported", columns, first(rows), "{0:,} files of the library import {2}")


def import_graph(library_imports: ByFile) -> dict[str, list[str]]:
    """For each module of the library, the others of it that it imports on load, in any branch."""
    modules = set(map(module_of, library_imports))
    graph = {}
    for path, imports in library_imports.items():
        targets = {known(absolute(name, path), modules) for name in imports["on load"]}
        graph[module_of(path)] = sorted(targets - {module_of(path), ""})
    return graph


def import_cycles(import_graph: dict[str, list[str]]) -> Finding:
    """The shortest circle through each module that is on one, each circle once."""
    cycles: dict[frozenset[str], list[str]] = {}
    for module in import_graph:
        cycle = shortest_cycle(import_graph, module)
        if cycle:
            cycles.setdefault(frozenset(cycle), cycle)
    rows = [[len(cycle), " > ".join([*cycle, cycle[0]])] for cycle in cycles.values()]
    headline = f"{len(rows)} circles, of up to {{0}} modules"
    return finding("Import circles on load", ["modules", "circle"], first(rows), headline)


def never_imported(library_imports: ByFile, test_imports: ByFile) -> Finding:
    """Modules that no import statement names, neither in the library nor in its tests."""
    modules = set(map(module_of, library_imports))
    imported = {
        known(absolute(name, path), modules)
        for path, imports in (*library_imports.items(), *test_imports.items())
        for name in (*imports["on load"], *imports["later"])
    }
    parents = {module.rpartition(".")[0] for module in modules}
    orphans = Counter(module.rpartition(".")[0] for module in modules - imported - parents)
    rows = [[count, package or "(top level)"] for package, count in orphans.items()]
    headline = f"{orphans.total():,} modules, {{0:,}} of them in {{1}}"
    columns = ["modules", "package"]
    return finding("Named by no import statement", columns, first(rows), headline)


def longest_functions(library_functions: ByFile) -> Finding:
    """Functions by lines."""
    rows = by_measure(library_functions, "lines")
    return finding("Longest functions", ["lines", "function", "at"], rows, "{1} has {0:,} lines")


def most_complex_functions(library_functions: ByFile) -> Finding:
    """Functions by the places at which they can take another way."""
    rows = by_measure(library_functions, "branches")
    columns = ["branches", "function", "at"]
    return finding("Most complex functions", columns, rows, "{1} has {0:,} branches")


def deepest_functions(library_functions: ByFile) -> Finding:
    """Functions by the depth to which their blocks are nested."""
    rows = by_measure(library_functions, "depth")
    columns = ["blocks", "function", "at"]
    return finding("Deepest nesting", columns, rows, "{1} nests {0} blocks")


def most_used_names(library_names: ByFile) -> Finding:
    """Built-in names and the authors' own, side by side."""
    names: list[list[Any]] = [[count, name] for name, count in summed(library_names).items()]
    built_in = first(row for row in names if is_built_in(row[1]))
    own = first(row for row in names if not is_built_in(row[1]))
    rows = [[*left, *right] for left, right in zip(built_in, own, strict=False)]
    columns = ["uses", "built-in", "uses", "own"]
    return finding("Most used names", columns, rows, "{1} {0:,} times, {3} {2:,} times")


def docstring_coverage(library_documented: ByFile) -> Finding:
    """Public modules, classes and functions with a docstring: overall, and where few have one."""
    packages: dict[str, list[bool]] = {}
    for path, documented in library_documented.items():
        packages.setdefault(package_of(path), []).extend(documented)
    everything = [flag for flags in packages.values() for flag in flags]
    known_well = [row for row in packages.items() if len(row[1]) >= LEAST_PUBLIC]
    least = sorted(known_well, key=lambda row: sum(row[1]) / len(row[1]))[:LISTED]
    rows = [
        [100 * sum(flags) // len(flags), len(flags), package]
        for package, flags in (("(all)", everything), *least)
        if flags
    ]
    columns = ["percent", "public definitions", "package"]
    headline = "{0} % of {1:,} public definitions have one"
    return finding("Fewest docstrings", columns, rows, headline)


def oldest_notices(library_years: ByFile) -> Finding:
    """Files by the earliest year in a copyright notice."""
    rows = sorted([str(min(years)), path] for path, years in library_years.items() if years)
    columns = ["year", "file"]
    return finding("Oldest copyright notices", columns, rows[:LISTED], "{1} names {0}")


def unread_files(library_failure: ByFile, test_failure: ByFile) -> Finding:
    """All files of which there are no facts, and why."""
    failures = {**library_failure, **test_failure}
    rows = [[path, failures[path]] for path in failures]
    headline = f"{len(rows)} files, among them {{0}}"
    return finding("Files that cannot be read", ["file", "because"], rows, headline)


def finding(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], headline: str
) -> Finding:
    """A table. The headline is a template that the first row fills in."""
    told = headline.format(*rows[0]) if rows else "none"
    return {"title": title, "columns": columns, "rows": rows, "headline": told}


def first(rows: Iterable[list[Any]]) -> list[list[Any]]:
    """The rows with the highest numbers, equal ones by name."""
    return sorted(rows, key=lambda row: (-row[0], row[1:]))[:LISTED]


def by_measure(functions: ByFile, measure: str) -> list[list[Any]]:
    """The functions of all files for which a measure is highest."""
    return first(
        [function[measure], function["name"], f"{path}:{function['line']}"]
        for path, found in functions.items()
        for function in found
    )


def summed(counts: Mapping[str, Mapping[str, int]]) -> Counter[str]:
    """The counts of all files together."""
    total: Counter[str] = Counter()
    for count in counts.values():
        total.update(count)
    return total


def is_built_in(name: str) -> bool:
    """Whether a name means something without being defined. ``__name__`` is each module's own."""
    return hasattr(builtins, name) and not name.startswith("__")


def importing_files(imports: ByFile) -> Counter[str]:
    """How many files import each top-level module or package, their own aside."""
    return Counter(
        root
        for found in imports.values()
        for root in {name.partition(".")[0] for name in (*found["on load"], *found["later"])}
        if root
    )


def package_of(path: str) -> str:
    """The top-level package or module that a file belongs to."""
    return module_of(path).partition(".")[0]


def module_of(path: str) -> str:
    """The dotted name under which a file is imported."""
    return ".".join(PurePath(path).with_suffix("").parts).removesuffix(".__init__")


def absolute(name: str, path: str) -> str:
    """What a name that is imported in a file means, relative ones included."""
    bare = name.lstrip(".")
    level = len(name) - len(bare)
    if not level:
        return name
    folders = PurePath(path).parts[:-1]
    return ".".join([*folders[: len(folders) - level + 1], bare])


def known(name: str, modules: set[str]) -> str:
    """The module that an imported name is, or is defined in; empty for one from elsewhere."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def shortest_cycle(graph: Mapping[str, Sequence[str]], start: str) -> list[str]:
    """The shortest way from a module back to itself, by breadth-first search; empty if none."""
    came_from: dict[str, str] = {}
    pending = deque([start])
    while pending:
        module = pending.popleft()
        for target in graph[module]:
            if target == start:
                return walked_back(came_from, start, module)
            if target not in came_from:
                came_from[target] = module
                pending.append(target)
    return []


def walked_back(came_from: Mapping[str, str], start: str, end: str) -> list[str]:
    """The way from ``start`` to ``end`` that a search has taken."""
    way = [end]
    while way[-1] != start:
        way.append(came_from[way[-1]])
    return way[::-1]
