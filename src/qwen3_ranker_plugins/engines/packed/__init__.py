"""The packed engine: every document of every waiting request in one pass, through transformers' layers or our own."""
