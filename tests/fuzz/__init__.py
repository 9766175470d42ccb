"""Mutated inputs by the thousand, each made from its number alone: ``python -m tests.fuzz --count 10000``.

Every case ends in success or in one clean line of error, in under two seconds of processor time and 200 MB of
memory, and touches nothing but its target. ``--case N`` runs one again and keeps its files.
"""
