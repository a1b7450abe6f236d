"""Scores that were computed before: in memory, or in a file that outlives the process and is shared with others."""

from .scores import PASS_BYTES, CacheStatistics, Entry, ScoreCache, Segment

__all__ = ["PASS_BYTES", "CacheStatistics", "Entry", "ScoreCache", "Segment"]
