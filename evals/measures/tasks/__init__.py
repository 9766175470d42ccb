"""What a model can do: perplexity, questions, greedy answers, degenerate text, and an external harness."""
