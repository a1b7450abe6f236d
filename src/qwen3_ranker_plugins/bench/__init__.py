"""Measuring, by what is measured: quality, throughput, latency over HTTP, load, and settings found by measuring.

A package for each: `quality` (reranking, metrics), `throughput` (batch sizes), `latency` (requests, matrix, client,
server process), `load` (workloads, target, connections, arrivals, run, results, report), `tune` (search, own process).
What they share: `machine` (where, and how busy it was), `results` (files), `report` and `figures` (pages and pictures),
`report_files` (the kinds of results), `compare`, `statistics`, `peak_memory`, `presets`, `titles` (generated product
titles), `published` (figures of others).
"""
