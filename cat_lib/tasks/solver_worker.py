"""The process that solves formulations: `python -m cat_lib.tasks.solver_worker`. Started by solvers.py.

HiGHS solves what is linear, through its API, and what is quadratic in the objective alone, convex and without integers
(a tree that multiplies out to that); SCIP, if it is there, the rest. No time is limited here: a limit by
the clock would depend on what else the machine does, so what takes too long ends the process (workers.py).
"""

from __future__ import annotations

import json
import math
import operator
import random
from contextlib import suppress
from dataclasses import replace
from functools import cache, reduce
from typing import Any

import highspy
import numpy as np

from cat_lib.tasks.formulation import LARGEST, SMALLEST, Expression, Formulation, FormulationError, Tree, read
from cat_lib.tasks.solvers import LIMIT, MEMORY, MISSING, PRICINGS, REPLY, SMALL, near
from cat_lib.tasks.workers import serve

with suppress(ImportError):
    import pyscipopt

Terms = dict[tuple[str, ...], float]  # numbers by the variables that they multiply: none, one, or two in their order
Solved = dict[str, Any]  # fields of solvers.Outcome; "limit" and MISSING are no outcomes
_STATUS = {"optimal": "optimal", "gaplimit": "optimal", "infeasible": "infeasible", "unbounded": "unbounded"}
_STATUS |= {"unboundedorinfeasible": "either", "inforunbd": "either"}  # solvers' own words, all others being limits
_OPERATORS: dict[str, Any] = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "^": pow}


def reply(text: str) -> str:
    """What a formulation comes to, as JSON; of two with "\\0" between them, whether they are the same model."""
    try:
        first, *others = map(read, text.split("\0"))
        found = {"same": _same(first, others[0])} if others else solved(first) | {"nonlinear": first.nonlinear}
    except FormulationError as error:
        found = {"status": "malformed", "why": str(error)[:400]}
    return json.dumps(found)


def solved(of: Formulation) -> Solved:
    """The outcome. Where a solver can't say whether it is infeasible or unbounded, a constant objective tells."""
    flat = _flat(of)
    if (found := _by_highs(of, *flat) if flat else _by_scip(of))["status"] == "limit" and flat and of.nonlinear:
        found = _by_scip(of)
    if found["status"] == "either":
        feasible = solved(replace(of, objective=Expression()))["status"]
        found = {"status": "unbounded" if feasible == "optimal" else feasible}
    return found


def _flat(of: Formulation) -> tuple[Terms, list[Terms]] | None:
    """Objective and rows multiplied out, if HiGHS solves that: linear, or with a convex objective and no integers."""
    rows = [_expanded(left) for left, _, _ in of.rows]
    goal = _expanded(of.objective)
    if goal is None or any(row is None or any(len(v) > 1 for v in row) for row in rows):
        return None
    if squares := {v: value for v, value in goal.items() if len(v) > 1}:
        signed = np.linalg.eigvalsh(_hessian(squares, [*of.variables])) * (-1 if of.maximize else 1)
        if any(v.integer for v in of.variables.values()) or signed[0] < -1e-12 * abs(signed).max():
            return None
    return goal, [row for row in rows if row is not None]


def _hessian(squares: Terms, names: list[str]) -> Any:
    """The matrix of second derivatives, in the order of names."""
    place, made = {name: i for i, name in enumerate(names)}, np.zeros((len(names), len(names)))
    for (one, other), value in squares.items():
        made[place[one], place[other]] = value
    return made + made.T


def _expanded(of: Expression) -> Terms | None:
    """The expression multiplied out; None if it is no sum of products of two, or has numbers that HiGHS misreads."""
    own: Terms = {(): of.constant} | {(name,): value for name, value in of.terms.items()}
    if of.tree is None:
        return own
    if (tree := _product_sum(of.tree)) is None:
        return None
    kept = {v: value for v, value in _added(own, tree).items() if value}
    return kept if all(SMALLEST <= abs(value) <= LARGEST for value in kept.values()) else None


def _added(one: dict[Any, float], other: dict[Any, float], factor: float = 1.0) -> dict[Any, float]:
    return one | {v: one.get(v, 0.0) + factor * value for v, value in other.items()}


def _product_sum(tree: Tree) -> Terms | None:
    """A tree as a sum of products of at most two variables, if it is one by + - *, by / of a number and by ^ 1 or 2."""
    if not isinstance(tree, tuple):
        return {(tree,): 1.0} if isinstance(tree, str) else {(): tree}
    name, of = tree[0], [part for part in map(_product_sum, tree[1:]) if part is not None]
    if len(of) + 1 < len(tree):
        return None
    if name in ("+", "-"):
        sign, first = (-1.0 if name == "-" else 1.0), {} if len(of) == 1 and name == "-" else of.pop(0)
        return reduce(lambda made, part: _added(made, part, sign), of, first)
    if name == "/" and of[1].get(()) and len(of[1]) == 1:
        of[1] = {(): 1 / of[1][()]}
    elif name == "^" and of[1] in ({(): 1.0}, {(): 2.0}):
        of[1] = of[0] if of[1][()] == 2 else {(): 1.0}
    elif name != "*":
        return None
    made: Terms | None = of[0]
    for part in of[1:]:
        made = _times(made, part)
    return made


def _times(one: Terms | None, other: Terms) -> Terms | None:
    made: Terms = {}
    for first, a in (one or {}).items():
        for second, b in other.items():
            both = tuple(sorted((*first, *second)))
            made[both] = made.get(both, 0.0) + a * b
    return None if one is None or any(len(both) > 2 for both in made) else made


@cache
def _highs() -> Any:
    made = highspy.Highs()  # which prints: not before `serve` has seen to that
    for option, value in {"output_flag": False, "threads": 1, "mip_rel_gap": 0.0}.items():
        made.setOptionValue(option, value)
    return made


def _by_highs(of: Formulation, goal: Terms, lefts: list[Terms]) -> Solved:
    highs = _highs()
    highs.clearModel()
    place = {name: i for i, name in enumerate(of.variables)}
    for name, variable in of.variables.items():
        highs.addCol(goal.get((name,), 0.0), variable.low, variable.high, 0, [], [])
        if variable.integer:
            highs.changeColIntegrality(place[name], highspy.HighsVarType.kInteger)
    for left, (_, sign, right) in zip(lefts, of.rows, strict=True):
        right -= left.pop((), 0.0)
        low, high = -math.inf if sign == "<=" else right, math.inf if sign == ">=" else right
        highs.addRow(low, high, len(left), [place[name] for (name,) in left], [*left.values()])
    if squares := {v: value for v, value in goal.items() if len(v) > 1}:
        lower = np.tril(_hessian(squares, [*place]))
        starts = np.concatenate([[0], np.count_nonzero(lower, axis=0).cumsum()[:-1]]).astype(np.int32)
        columns, at = np.nonzero(lower.T)
        triangle = int(highspy.HessianFormat.kTriangular)
        highs.passHessian(len(place), len(at), triangle, starts, at.astype(np.int32), lower.T[columns, at])
    highs.changeObjectiveOffset(goal.get((), 0.0))
    highs.changeObjectiveSense(highspy.ObjSense.kMaximize if of.maximize else highspy.ObjSense.kMinimize)
    highs.run()
    status = _STATUS.get(highs.getModelStatus().name[1:].lower(), "limit")
    if status != "optimal":
        return {"status": status}
    solution, basis, basic = highs.getSolution(), highs.getBasis(), highspy.HighsBasisStatus.kBasic
    duals = zip([*basis.col_status, *basis.row_status], [*solution.col_dual, *solution.row_dual], strict=False)
    unique = basis.valid and all(at == basic or abs(dual) > SMALL for at, dual in duals)
    values = dict(zip(place, solution.col_value, strict=True))
    return {"status": status, "objective": highs.getInfo().objective_function_value, "values": values, "unique": unique}


def _by_scip(of: Formulation) -> Solved:
    if "pyscipopt" not in globals():
        return {"status": MISSING}
    model, v = pyscipopt.Model(), dict[str, Any]()
    model.hideOutput()
    model.setParam("limits/gap", SMALL)
    for name, variable in of.variables.items():
        ends = (None if math.isinf(end) else end for end in (variable.low, variable.high))
        v[name] = model.addVar(name, "CI"[variable.integer], *ends)
    try:
        for left, sign, right in of.rows:
            made = _built(left, v)
            model.addCons(made <= right if sign == "<=" else made >= right if sign == ">=" else made == right)
        goal, made = model.addVar("0", lb=None), _built(of.objective, v)  # SCIP's own objective has to be linear
        model.addCons(goal <= made if of.maximize else goal >= made)
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:  # 1 / 0, or a row without a variable
        raise FormulationError(f"SCIP takes no such expression: {str(error)[:200]}") from None
    model.setObjective(goal, "maximize" if of.maximize else "minimize")
    model.optimize()
    if (status := _STATUS.get(model.getStatus(), "limit")) != "optimal":
        return {"status": status}
    return {"status": status, "objective": model.getObjVal(), "values": {name: model.getVal(v[name]) for name in v}}


def _built(of: Expression, variables: dict[str, Any]) -> Any:
    """The expression over SCIP's variables."""
    made = of.constant + sum(value * variables[name] for name, value in of.terms.items())
    return made if of.tree is None else made + _branch(of.tree, variables)


def _branch(tree: Tree, variables: dict[str, Any]) -> Any:
    if not isinstance(tree, tuple):
        return variables[tree] if isinstance(tree, str) else tree
    name, of = tree[0], [_branch(part, variables) for part in tree[1:]]
    if name in ("sqrt", "exp", "log"):
        return getattr(math if isinstance(of[0], float) else pyscipopt, name)(of[0])
    return -of[0] if name == "-" and len(of) == 1 else reduce(_OPERATORS[name], of)


def _same(one: Formulation, other: Formulation) -> bool | None:
    """Whether both have one optimum, at their own prices and at random ones; None at a limit.

    Where all variables of `other` stand in `one` by name, its further ones are auxiliary, and keep their prices. Else
    variables are matched by their order: a wrong match can deny what is the same, and hardly find the same in what is
    not. What a price changes by is added to both objectives, whose own prices may stand at an auxiliary variable.
    """
    names = {name.lower(): name for name in one.variables}
    matched = [names.get(name.lower(), "") for name in other.variables]
    if "" in matched:
        matched = list(one.variables)
    if len(matched) != len(other.variables):
        return False
    rng, prices = random.Random(0), other.objective.terms
    # by an auxiliary variable a row can be bought off, at a price that few others pass
    pricings = PRICINGS * (1 if len(one.variables) == len(other.variables) else 4)
    for pricing in range(1 + pricings):
        factors = [2 ** rng.uniform(-3, 3) for _ in matched]
        added = [prices.get(name, 0.0) * (f - 1) for name, f in zip(other.variables, factors, strict=True)]
        if other.objective.tree is not None:  # it has no prices, and gets the factors beside it
            added = [-f if other.maximize else f for f in factors]
        first, second = (
            solved(_priced(of, dict(zip(by, added, strict=True))) if pricing else of)
            for of, by in ((one, matched), (other, other.variables))
        )
        if {"limit", MISSING} & {first["status"], second["status"]}:
            return None
        values = first.get("objective", 0.0), second.get("objective", 0.0)
        if first["status"] != second["status"] or not near(*values, one.nonlinear and other.nonlinear):
            return False
    return True


def _priced(of: Formulation, added: dict[str, float]) -> Formulation:
    return replace(of, objective=replace(of.objective, terms=_added(of.objective.terms, added)))


if __name__ == "__main__":
    serve(reply, "max\nx\nst\nx <= 1\nend", LIMIT, MEMORY, REPLY)
