"""Which threshold a score needs on labelled data, and whether the scores are probabilities there."""
