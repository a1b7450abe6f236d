"""Measuring: quality, throughput, latency over HTTP, comparisons, and settings found by measuring.

Reading order: `command` (flags), then one module per command: `quality`, `throughput`, `latency`, `matrix`, `compare`,
`tune`. What they share: `results` (files), `collection` (labelled data), `measures` (ir-measures), `stats`, `memory`,
`titles` (generated product titles), `figures` and `report` (pictures and pages), `published` (figures of others).
"""
