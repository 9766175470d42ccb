"""What the numbers mean: a score, findings, a verdict, advice."""
