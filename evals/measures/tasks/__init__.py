"""What a model can do: perplexity, questions, greedy answers, degenerate text, and an external harness."""

from merge_models.evals.measures.tasks.probe import TaskProbe as TaskProbe
from merge_models.evals.measures.tasks.settings import TaskSettings as TaskSettings

__all__ = ["TaskProbe", "TaskSettings"]
