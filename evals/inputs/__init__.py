"""What measures take: text, models, their positions and lineage, checked before anything is measured."""
