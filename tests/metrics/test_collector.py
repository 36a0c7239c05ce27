"""All rows as Prometheus reads them."""

import re
from dataclasses import replace

import pytest

pytest.importorskip("prometheus_client", reason="the extra metrics is not installed")

from prometheus_client import Metric
from prometheus_client import parser as prometheus_parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from geosocks.metrics import cells as c
from geosocks.metrics.cells import BOUNDS, Cells
from geosocks.metrics.collector import Exposition, SlabCollector
from geosocks.metrics.observer import Metrics
from geosocks.shared import Layout
from tests.metrics.test_observer import CLOSED

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Scraped:
    """Two workers' rows, and what a scrape makes of them."""

    def __init__(self) -> None:
        layout = Layout()
        cells = Cells.take(layout)
        slab = layout.slab(2)
        self.workers = [Metrics(cells, slab.row(slot)) for slot in range(2)]
        self.exposition = Exposition(SlabCollector(cells, slab, "1.2.3"))

    def text(self, accept: str = "") -> str:
        return self.exposition.render(accept)[1].decode()

    def families(self) -> dict[str, Metric]:
        return {
            family.name: family
            for family in prometheus_parser.text_string_to_metric_families(self.text())
        }

    def value(self, sample: str, **labels: str) -> float:
        found = [
            one.value
            for family in self.families().values()
            for one in family.samples
            if one.name == sample and one.labels == labels
        ]
        assert len(found) == 1, f"{sample} {labels}: {found}"
        return found[0]


@pytest.fixture
def scraped() -> Scraped:
    return Scraped()


def test_counters_are_sums_over_the_workers(scraped: Scraped) -> None:
    for worker in scraped.workers:
        worker(CLOSED)
    assert scraped.value("geosocks_sessions_total", command="connect", reply="succeeded") == 2
    assert scraped.value("geosocks_octets_total", direction="down") == 40


def test_gauges_are_each_workers_own(scraped: Scraped) -> None:
    scraped.workers[1].begin()
    assert scraped.value("geosocks_worker_up", worker="0") == 0
    assert scraped.value("geosocks_worker_up", worker="1") == 1


def test_a_histogram_is_cumulative_and_in_seconds(scraped: Scraped) -> None:
    for seconds in (0.0005, 0.2, 99.0):
        scraped.workers[0](replace(CLOSED, connect=seconds))
    name = "geosocks_connect_seconds"
    assert scraped.value(f"{name}_bucket", le="0.001") == 1
    assert scraped.value(f"{name}_bucket", le="0.25") == 2
    assert scraped.value(f"{name}_bucket", le="10.0") == 2
    assert scraped.value(f"{name}_bucket", le="+Inf") == 3
    assert scraped.value(f"{name}_count") == 3
    assert scraped.value(f"{name}_sum") == pytest.approx(99.2005)


def test_the_build_is_told(scraped: Scraped) -> None:
    (build,) = scraped.families()["geosocks_build_info"].samples
    assert build.labels["version"] == "1.2.3"
    assert build.labels.keys() == {"version", "python", "gevent"}


def test_all_labels_are_there_from_the_start(scraped: Scraped) -> None:
    families = scraped.families()
    for family in c.FAMILIES:
        found = families["geosocks_" + family.name].samples
        expected = {"gauge": 2, "counter": len(family.values), "histogram": len(BOUNDS) + 3}
        assert len(found) == expected[family.kind], family.name
    assert sum(len(family.samples) for family in families.values()) < 300


def test_openmetrics_for_who_asks_for_it(scraped: Scraped) -> None:
    content_type, text = scraped.exposition.render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    families = list(openmetrics_parser.text_string_to_metric_families(text.decode()))
    assert len(families) == len(c.FAMILIES) + 1
    assert text.endswith(b"# EOF\n")
    assert scraped.exposition.render("text/html")[0].startswith("text/plain")


def test_names_and_help_are_as_prometheus_likes_them(scraped: Scraped) -> None:
    for family in c.FAMILIES:
        assert re.fullmatch("[a-z_]+", family.name)
        assert family.help.endswith(".")
    for name in ("sessions_active", "handshakes_active", "worker_up", "refused_connections_total"):
        assert f"\ngeosocks_{name}{{" in scraped.text()


def test_no_client_can_put_a_word_of_its_own_into_it(scraped: Scraped) -> None:
    before = scraped.text()
    hostile = replace(CLOSED, identity='alice"} 1\n', rule="deny\nx", reason="x\n# EOF")
    scraped.workers[0](hostile)
    after = scraped.text()
    assert len(before.splitlines()) == len(after.splitlines())
    assert "alice" not in after
