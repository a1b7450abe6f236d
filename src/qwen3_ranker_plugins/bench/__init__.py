"""Measurements of quality, throughput, latency over HTTP and load; thresholds and settings found by measuring.

One package for each: `quality` (reranking, metrics), `throughput` (batch sizes), `latency` (requests, matrix, client,
server process), `load` (workloads, target, connections, arrivals, run, results, report), `threshold` (curves, fitting),
`tune` (search, own process). Shared modules: `machine` (the machine, and how busy it was), `results` (files), `report`
and `figures` (pages and pictures), `report_files` (the kinds of results), `compare`, `statistics`, `peak_memory`,
`presets`, `titles` (generated product titles), `published` (figures that others published).
"""
