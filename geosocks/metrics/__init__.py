"""Figures of a server: events are counted into a worker's row, and a collector shows all rows.

``cells`` says what there is, ``observer`` counts, ``history`` keeps the last hour, and
``collector`` speaks to ``prometheus_client``, which is an extra and is imported by nothing else.
"""
