"""The Grafana dashboard and the alerts for Prometheus: about metrics that there are."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import needed, run
from tests.support.proxy import ROOT

pytest.importorskip("prometheus_client", reason="the extra metrics is not installed")

from prometheus_client import parser as prometheus_parser

from geosocks.metrics.cells import Cells
from geosocks.metrics.collector import Exposition, SlabCollector
from geosocks.metrics.observer import Metrics
from geosocks.shared import Layout

DASHBOARD = ROOT / "etc" / "grafana" / "geosocks.json"
ALERTS = ROOT / "etc" / "prometheus" / "geosocks.rules.yml"

OF_PROMETHEUS = {"instance", "job"}
"""Labels that a scrape adds."""


@pytest.fixture(scope="module")
def samples() -> dict[str, dict[str, set[str]]]:
    """What a scrape has: samples, their labels, and the values of these."""
    layout = Layout()
    cells = Cells.take(layout)
    slab = layout.slab(1)
    Metrics(cells, slab.row(0)).begin()
    text = Exposition(SlabCollector(cells, slab, "1.2.3")).render()[1].decode()
    found: dict[str, dict[str, set[str]]] = {}
    for family in prometheus_parser.text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text())


def panels() -> Iterator[dict[str, Any]]:
    """Those that show something."""
    for panel in dashboard()["panels"]:
        if panel["type"] != "row":
            yield panel


def expressions() -> list[str]:
    """Every question that is put to Prometheus: by a panel, or by an alert."""
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    folded = re.sub(r"\n {10}(?! *\w+:)", " ", ALERTS.read_text())
    alerts = re.findall(r"^ +expr: (?:>- )?(.+)$", folded, re.MULTILINE)
    assert len(alerts) == folded.count("- alert:")
    return asked + alerts


def test_all_is_about_metrics_and_labels_that_there_are(
    samples: dict[str, dict[str, set[str]]],
) -> None:
    asked = expressions()
    assert len(asked) > 30
    for expression in asked:
        known = set(OF_PROMETHEUS)
        names = re.findall(r"geosocks_\w+", expression)
        assert names or "up{" in expression, expression
        for name in names:
            assert name in samples, f"{name} in {expression}"
            known |= samples[name].keys()
        for by in re.findall(r"\bby \(([^)]*)\)", expression):
            assert set(by.replace(" ", "").split(",")) <= known | {"le"}, expression
        for label, operator, value in re.findall(r'(\w+)(=~|=)"([^"]*)"', expression):
            assert label in known, expression
            if label not in OF_PROMETHEUS:
                closed = samples[names[0]][label]
                wanted = value.split("|") if operator == "=~" else [value]
                assert set(wanted) <= closed, expression


def test_every_metric_is_shown_or_watched(samples: dict[str, dict[str, set[str]]]) -> None:
    asked = " ".join(expressions())
    unused = {
        name
        for name in samples
        if not re.search(rf"\b{name}\b", asked)
        and not name.endswith(("_sum", "_count", "_created"))
    }
    assert unused <= {"geosocks_draining"}


def test_the_dashboard_is_whole() -> None:
    board = dashboard()
    assert {one["name"] for one in board["templating"]["list"]} == {"datasource", "instance"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another one"
        taken |= cells
    for panel in panels():
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert 'instance=~"$instance"' in target["expr"], panel["title"]


def test_promtool_takes_the_alerts() -> None:
    done = run([needed("promtool"), "check", "rules", ALERTS])
    assert done.code == 0, done.err + done.out.decode()
    assert b"SUCCESS: 10 rules found" in done.out


def test_promtool_takes_what_the_panels_ask(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(expressions())
    ]
    path = tmp_path / "panels.yml"  # JSON is YAML, too
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = run([needed("promtool"), "check", "rules", path])
    assert done.code == 0, done.err + done.out.decode()


def test_promtool_has_nothing_to_say_of_the_metrics() -> None:
    layout = Layout()
    cells = Cells.take(layout)
    text = Exposition(SlabCollector(cells, layout.slab(2), "1.2.3")).render()[1]
    done = run([needed("promtool"), "check", "metrics"], given=text)
    assert done.code == 0, done.err + done.out.decode()


SERIES = {
    "GeosocksDown": ['up{job="geosocks"}: 0x30'],
    "GeosocksWorkerDown": ['geosocks_worker_up{worker="1"}: 0x30'],
    "GeosocksNearlyFull": [
        'geosocks_sessions_active{worker="0"}: 95x30',
        'geosocks_sessions_limit{worker="0"}: 100x30',
    ],
    "GeosocksOutOfDescriptors": ["geosocks_accept_pauses_total: 0+1x30"],
    "GeosocksReloadRefused": [
        'geosocks_config_last_reload_successful{worker="0"}: 0x30',
        'geosocks_worker_up{worker="0"}: 1x30',
    ],
    "GeosocksCrashed": ["geosocks_session_crashes_total: 0 0 0 1x30"],
    "GeosocksUpstreamFails": ["geosocks_upstream_failures_total: 0+1x30"],
    "GeosocksPasswordsGuessed": [
        'geosocks_authentications_total{method="username",result="failure"}: 0+120x30'
    ],
    "GeosocksTargetsFail": [
        'geosocks_sessions_total{command="connect",reply="host_unreachable"}: 0+60x30',
        'geosocks_sessions_total{command="connect",reply="succeeded"}: 0+30x30',
    ],
    "GeosocksSlowToConnect": [
        'geosocks_connect_seconds_bucket{le="2.5"}: 0+10x30',
        'geosocks_connect_seconds_bucket{le="5.0"}: 0+100x30',
        'geosocks_connect_seconds_bucket{le="+Inf"}: 0+100x30',
    ],
}
"""What each alert is for, a value a minute."""

WELL = [
    'up{job="geosocks"}: 1x30',
    'geosocks_worker_up{worker="0"}: 1x30',
    'geosocks_sessions_active{worker="0"}: 50x30',
    'geosocks_sessions_limit{worker="0"}: 100x30',
    "geosocks_accept_pauses_total: 3x30",
    'geosocks_config_last_reload_successful{worker="0"}: 1x30',
    "geosocks_session_crashes_total: 1x30",
    "geosocks_upstream_failures_total: 4x30",
    'geosocks_authentications_total{method="username",result="failure"}: 0+10x30',
    'geosocks_sessions_total{command="connect",reply="host_unreachable"}: 0+10x30',
    'geosocks_sessions_total{command="connect",reply="succeeded"}: 0+30x30',
    'geosocks_connect_seconds_bucket{le="2.5"}: 0+100x30',
    'geosocks_connect_seconds_bucket{le="+Inf"}: 0+100x30',
]


def input_series(lines: list[str]) -> list[dict[str, str]]:
    parts = (line.rpartition(": ") for line in lines)
    return [{"series": name, "values": values} for name, _, values in parts]


def test_each_alert_goes_off_when_it_should_and_only_then(tmp_path: Path) -> None:
    names = re.findall(r"alert: (\w+)", ALERTS.read_text())
    assert SERIES.keys() == set(names)
    query = 'count by (alertname) (ALERTS{alertstate="firing"})'
    tests = [
        {
            "interval": "1m",
            "input_series": input_series(lines),
            "promql_expr_test": [
                {
                    "expr": query,
                    "eval_time": "29m",
                    "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1}]
                    if name
                    else [],
                }
            ],
        }
        for name, lines in [*SERIES.items(), ("", WELL)]
    ]
    path = tmp_path / "test.yml"
    path.write_text(json.dumps({"rule_files": [str(ALERTS)], "tests": tests}))
    done = run([needed("promtool"), "test", "rules", path])
    assert done.code == 0, done.err + done.out.decode()
