"""A server that continues texts: requests, the engine that batches them, answers over HTTP."""
