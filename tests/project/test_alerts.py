"""The alert rules for Prometheus agree with the metrics that a process exports, and with docs/metrics.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

ROOT = Path(__file__).parents[2]
GROUPS: list[dict[str, Any]] = yaml.safe_load((ROOT / "deploy/prometheus/headwater.rules.yml").read_text())["groups"]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
LISTED = re.findall(r"^\| `(\w+)` \| \w+ \| ([\w, ]*) \|", PAGE, re.MULTILINE)
METRICS = {name: labels.split(", ") for name, labels in LISTED}
"""The labels of each metric. tests/server/test_metrics.py holds this table to what a process exports."""


def selectors(expression: promql.Expr) -> Iterator[promql.VectorSelector]:
    """Yield every selection of a metric in an expression."""
    match expression:
        case promql.VectorSelector():
            yield expression
        case promql.MatrixSelector():
            yield expression.vector_selector
        case promql.Call():
            for argument in expression.args:
                yield from selectors(argument)
        case promql.BinaryExpr():
            yield from selectors(expression.lhs)
            yield from selectors(expression.rhs)
        case promql.AggregateExpr() | promql.ParenExpr():
            yield from selectors(expression.expr)
        case promql.NumberLiteral():
            return
        case _:
            raise AssertionError(f"the test does not know {type(expression).__name__}: teach it")


def named(rule: dict[str, Any]) -> str:
    return str(rule["alert"])


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_each_rule_selects_metrics_that_a_process_exports_by_labels_that_they_have(rule: dict[str, Any]) -> None:
    found = list(selectors(promql.parse(rule["expr"])))
    assert found
    for selector in found:
        assert selector.name in METRICS
        assert {matcher.name for matcher in selector.matchers.matchers} <= set(METRICS[selector.name])


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_each_rule_has_what_prometheus_and_its_reader_need(rule: dict[str, Any]) -> None:
    assert rule.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert re.fullmatch(r"Headwater[A-Za-z]+", rule["alert"])
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert isinstance(promql.parse(f"up offset {rule.get('for', '1m')}"), promql.VectorSelector)


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_a_summary_shows_only_labels_that_the_alert_has(rule: dict[str, Any]) -> None:
    shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    expression = promql.parse(rule["expr"])
    aggregate = expression.lhs if isinstance(expression, promql.BinaryExpr) else expression
    kept = {"instance", "job"}
    if isinstance(aggregate, promql.AggregateExpr):
        assert aggregate.modifier is not None
        kept = set(aggregate.modifier.labels)
    assert shown <= kept


def test_the_page_lists_the_same_alerts_with_the_same_expressions() -> None:
    listed = re.findall(r"^\| `(Headwater\w+)` \| `(.+?)` \|", PAGE, re.MULTILINE)
    assert listed == [(rule["alert"], rule["expr"]) for rule in RULES]


def test_no_alert_is_there_twice() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))
