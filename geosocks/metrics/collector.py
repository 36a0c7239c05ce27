"""All rows as Prometheus reads them, through ``prometheus_client``, which writes the text.

Needs that package, the extra ``metrics``.
"""

import platform
from collections.abc import Iterator
from itertools import accumulate

import gevent
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from geosocks.metrics import cells as c
from geosocks.metrics.cells import BOUNDS, Cells, Family
from geosocks.shared import Slab

PREFIX = "geosocks_"


class SlabCollector(Collector):
    """Reads the slab whenever it is asked; keeps nothing."""

    def __init__(self, cells: Cells, slab: Slab, version: str) -> None:
        self.cells = cells
        self.slab = slab
        self.version = version

    def collect(self) -> Iterator[Metric]:
        """Every family, each with all its labels, zero or not: a rate then has a beginning."""
        yield InfoMetricFamily(
            PREFIX + "build",
            "What runs.",
            {
                "version": self.version,
                "python": platform.python_version(),
                "gevent": gevent.__version__,
            },
        )
        for family in c.FAMILIES:
            yield self._family(family)

    def _family(self, family: Family) -> Metric:
        if family.kind == "gauge":
            return self._gauge(family)
        if family.kind == "histogram":
            return self._histogram(family)
        metric = CounterMetricFamily(PREFIX + family.name, family.help, labels=family.labels)
        for values, cell in zip(family.values, self.cells.of(family), strict=True):
            metric.add_metric(values, self.slab.total(cell))
        return metric

    def _gauge(self, family: Family) -> Metric:
        kind = CounterMetricFamily if family.counts_up else GaugeMetricFamily
        metric = kind(PREFIX + family.name, family.help, labels=("worker",))
        for slot, value in enumerate(self.slab.column(self.cells.one(family))):
            metric.add_metric((str(slot),), value / family.scale)
        return metric

    def _histogram(self, family: Family) -> Metric:
        *buckets, total = (self.slab.total(cell) for cell in self.cells.of(family))
        bounds = (*map(floatToGoString, BOUNDS), "+Inf")
        metric = HistogramMetricFamily(PREFIX + family.name, family.help)
        counts = list(zip(bounds, map(float, accumulate(buckets)), strict=True))
        metric.add_metric((), counts, total / family.scale)
        return metric


class Exposition:
    """The text of ``/metrics``."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(collector)

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """The content type, and the text as the Accept header wants it: plain or OpenMetrics."""
        encoder, content_type = choose_encoder(accept)
        return content_type, encoder(self._registry)
