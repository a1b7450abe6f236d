"""Scores that were computed before: in memory, or in a file that outlives the process and is shared with others."""

from .scores import CacheStatistics, Entry, ScoreCache, Segment

__all__ = ["CacheStatistics", "Entry", "ScoreCache", "Segment"]
