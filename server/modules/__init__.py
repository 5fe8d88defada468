"""What a transformer computes, in our words: recognised in a module of transformers, checked and run by both engines.

Nothing here knows an engine, its cache or its batches.
"""
