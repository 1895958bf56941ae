"""The formula of a ``multi`` grader: numbers, names of graders, ``+ - * / ^`` and a few functions. It cannot run code."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,  # not **, which gives complex numbers
}
_SIGNS: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_SEVERAL = ("min", "max")
_LONGEST = 1000
_DEEPEST = 50


@dataclass(frozen=True)
class Formula:
    """A checked formula."""

    text: str
    tree: ast.expr

    def value(self, names: Mapping[str, float]) -> float:
        """Return the value for the graders' scores. Raises ArithmeticError or ValueError where there is none."""
        value = _evaluate(self.tree, names)
        if not math.isfinite(value):
            raise ValueError(f"is {value}")
        return value


def parse_formula(text: str, names: Collection[str]) -> Formula:
    """Parse a formula over the names of graders.

    Raises:
        ValueError: it is not such a formula; the text says what is wrong.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"has {len(text):,} characters, more than {_LONGEST:,}")
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"is not a formula ({getattr(error, 'msg', None) or type(error).__name__})") from error
    _check(tree, names, 0)
    return Formula(text, tree)


def _check(node: ast.expr, names: Collection[str], depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"has more than {_DEEPEST} levels")
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        inner = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        inner = [node.operand]
    elif isinstance(node, ast.Call):
        inner = _arguments(node)
    elif isinstance(node, ast.Name):
        inner = []
        if node.id not in names:
            raise ValueError(f"names {node.id!r}; fix: use one of the graders: {', '.join(names)}")
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        inner = []
    else:
        raise ValueError(
            f"has {ast.unparse(node)[:60]!r}; fix: use numbers, graders, + - * / ^ and {', '.join(FUNCTIONS)}"
        )
    for each in inner:
        _check(each, names, depth + 1)


def _arguments(node: ast.Call) -> list[ast.expr]:
    name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)[:60]
    if name not in FUNCTIONS:
        raise ValueError(f"calls {name!r}; fix: use one of: {', '.join(FUNCTIONS)}")
    if node.keywords or (len(node.args) != 1 and not (name in _SEVERAL and len(node.args) > 1)):
        raise ValueError(f"calls {name} with {len(node.args) + len(node.keywords)} arguments")
    if name in _SEVERAL and len(node.args) == 1:
        raise ValueError(f"calls {name} with 1 argument; fix: give it two or more")
    return node.args


def _evaluate(node: ast.expr, names: Mapping[str, float]) -> float:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_evaluate(node.left, names), _evaluate(node.right, names))
    if isinstance(node, ast.UnaryOp):
        return _SIGNS[type(node.op)](_evaluate(node.operand, names))
    if isinstance(node, ast.Call):
        function = FUNCTIONS[node.func.id]  # type: ignore[attr-defined]  # checked
        return float(function(*(_evaluate(argument, names) for argument in node.args)))
    if isinstance(node, ast.Name):
        return float(names[node.id])
    return float(node.value)  # type: ignore[attr-defined]  # a constant, checked
