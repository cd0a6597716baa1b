"""Surveys: many prompts in, one Parquet table out, in shards that are each committed exactly once.

prompts → plan → shards → workers → parts → commits → merge → report
"""
