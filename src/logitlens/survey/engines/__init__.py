"""Engines: who works on which shard. An engine knows shard numbers and never touches a file.

engine(folder, shards, …) yields a record for each shard, or {"shard": …, "error": …}
"""
