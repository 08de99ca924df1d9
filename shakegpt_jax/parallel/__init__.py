"""Device mesh, sharding rules and asynchronous dispatch."""
