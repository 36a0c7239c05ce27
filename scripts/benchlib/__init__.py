"""What ``scripts/bench.py`` is made of: servers, load, measurements, table and plot."""
