"""Reports of an evaluation: Markdown for a model card, one self-contained page, tables of many merges.

Nothing here measures: a report says what an ``Evaluation`` holds, and what it lacks.
"""
