"""Finds thresholds of scores on labelled data, and measures whether the scores are probabilities there."""
