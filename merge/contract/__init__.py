"""What a strategy's author reads: what a strategy is given, and what it gives back.

A strategy makes a ``Kernel`` for each ``Case``; the loop that runs kernels knows nothing else of it.
"""
