"""Reading collections, candidate lists and judgements; BM25 over them."""
